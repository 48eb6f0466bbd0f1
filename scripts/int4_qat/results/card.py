"""Render the model card of one quantized variant from the JSON files of its results alone.

A figure that is missing, or that differs between the summary and the file it came from, is an error. huggingface_hub
writes the metadata block and reads it back.
"""

from collections import Counter
from pathlib import Path

import jinja2
from huggingface_hub import ModelCard

from int4_qat.config import quantizations, variants
from int4_qat.config.calibration import QUESTIONS
from int4_qat.config.recipes import STANDIN
from int4_qat.results import (
    calibrated_bases,
    card_checks,
    card_filters,
    card_metadata,
    measured_files,
    measurements,
    verdict,
)
from int4_qat.results.measurements import MMLU
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError

TEMPLATES = sources.PACKAGE.parent / "templates"
TEMPLATE = "model_card.md.jinja"


def render(results: Path, settings: dict) -> str:
    """Return the card of a model's results; raise InputError naming a figure that is missing or stale."""
    figures = gather(results, settings)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= card_filters.of(figures["summary"]["headline"])
    try:
        text = environment.get_template(TEMPLATE).render(figures)
        card = f"---\n{card_metadata.make(figures).to_yaml()}\n---\n\n{text}"
    except (jinja2.UndefinedError, KeyError) as error:
        raise InputError(f"{results}: expected all figures of the model card, found one missing ({error})") from None
    ModelCard(card)
    return card


def gather(results: Path, settings: dict) -> dict:
    """Return what the template shows, by the names that it uses; raise InputError if a result is missing or stale."""
    name, summary = settings["card"]["variant"], files.read_json(results / "summary.json")
    card_checks.check(results, name, summary, settings)
    rows = {row["name"]: row for row in summary["variants"]}
    return {
        "name": name,
        "settings": settings,
        "summary": summary,
        "costs": files.read_json(results / "costs.json"),
        "rows": rows,
        "baseline": rows[variants.BASELINE],
        "published": rows[name],
        "pairs": [pair for pair in summary["comparisons"] if pair["variant"] == name],
        "verdicts": [
            verdict.sentence(each) for each in verdict.of_variant(name, summary["training_against_calibration"])
        ],
        "profile": profile(settings),
        **of_sources(settings),
        **of_training(name, settings),
        **of_calibration(name, settings),
        **of_checkpoint(results / name, settings),
        **of_measurements(results / name, rows, settings),
    }


def of_sources(settings: dict) -> dict:
    """Return where the base model and the data come from, and which of them are stand-ins."""
    return {
        "base": card_metadata.source_of(settings["source"]),
        "data": card_metadata.source_of(settings["data"]["source"]),
        "standins": [key for key in standins_of(settings) if is_standin(settings, key)],
    }


def of_training(name: str, settings: dict) -> dict:
    """Return the recipe of a variant's arm and its texts, without either if the variant is a base's."""
    weights, _ = variants.split(name)
    recipe = settings["arms"].get(weights)
    return {
        "weights": weights,
        "recipe": recipe,
        "training_texts": training_texts(settings, recipe) if recipe else {},
    }


def of_calibration(name: str, settings: dict) -> dict:
    """Return how a variant, or the base that it started from, was calibrated, and all calibrated bases of the run."""
    calibrated = calibrated_bases.behind(name, settings)
    return {
        "calibrated_bases": calibrated_bases.bases(settings),
        "is_calibrated": calibrated_bases.is_calibrated(name, settings),
        "calibration": calibrated,
        "calibration_texts": {
            text: source and card_metadata.source_of(source)
            for text, source in (calibrated["texts"] if calibrated else {}).items()
        },
    }


def of_checkpoint(folder: Path, settings: dict) -> dict:
    """Return what a quantized variant's checkpoints are, and where each format of it can be had."""
    config = files.read_json(folder / "checkpoint" / "config.json")
    manifest = files.read_json(folder / "checkpoint" / "manifest.json")
    places, folders = places_of(settings), quantizations.folders(calibrated_bases.entry_of(folder.name, settings))
    return {
        "manifest": manifest,
        "number": "{type}{num_bits}".format_map(manifest["scheme"]),
        "kept": Counter(layer["reason"] for layer in manifest["layers"] if not layer["quantized"]),
        "model_type": config["model_type"],
        "auto_class": "AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForCausalLM",
        "places": places,
        "folders": list(folders),
        "quantizers": [quantizer(folder / each) for each in folders],
        "for_transformers": places[quantizations.LOADED],
        "for_vllm": places.get(quantizations.SERVED[quantizations.VLLM]),
    }


def of_measurements(folder: Path, rows: dict[str, dict], settings: dict) -> dict:
    """Return a variant's measurements, None under the names of those it lacks, and all variants' answers and tasks."""
    measured = measurements.asked(settings)[folder.name]
    runs = {one.name: measured_files.read(folder, one) for one in measured}
    return {
        **dict.fromkeys(one.name for one in measurements.table((), {})),
        **{one.name: runs[one.name] for one in measured if not one.group},
        "measured": measured,
        "runs": runs,
        "versions": {package: of for run in runs.values() for package, of in run.get("versions", {}).items()},
        "asked": {
            one.name: {variant: measured_files.part(row, one) for variant, row in rows.items()}
            for one in measured
            if one.samples and one.samples.of_choices
        },
        # The lm-eval tasks other than MMLU, by name: metric, value, stderr.
        "tasks": rows[folder.name]["tasks"],
        "charts": {variant: row["chartqa"] for variant, row in rows.items() if row["chartqa"]},
    }


def quantizer(folder: Path) -> str:
    """Return the quantization method that a folder's config.json names."""
    return files.read_json(folder / "config.json")["quantization_config"]["quant_method"]


def places_of(settings: dict) -> dict[str, str]:
    """Return where the published variant is, by format: repositories on the Hub, or local folders if none is named."""
    name, repository = settings["card"]["variant"], settings["card"]["repository"]
    entry = calibrated_bases.entry_of(name, settings)
    local = {folder: f"results/{settings['model']}/{name}/{folder}" for folder in quantizations.folders(entry)}
    found = quantizations.repositories(entry, repository) if repository else local
    return {word: found[folder] for folder, word in quantizations.folders(entry).items()}


def training_texts(settings: dict, recipe: dict) -> dict[str, dict]:
    """Return weight, source, files and license of each text of a recipe; the last two are None if not in the config."""
    entries = {QUESTIONS: settings["data"]} | settings["texts"]
    return {
        name: {
            "weight": weight,
            "source": card_metadata.source_of(entries[name]["source"]),
            "files": entries[name].get("files"),
            "license": entries[name].get("license"),
        }
        for name, weight in recipe["texts"].items()
    }


def profile(settings: dict) -> str:
    """Return the profile that starts a run with these settings, followed by its other options if any."""
    if settings["device"] == "cpu":
        return "profiles/demo"
    if is_standin(settings, "source"):
        return "profiles/gpu --configfile profiles/demo/demo.yaml profiles/gpu/demo.yaml"
    return "slurm"


def standins_of(settings: dict) -> list[str]:
    """Return which inputs of the card's figures may be stand-ins: the model, and MMLU's data if MMLU is measured."""
    return ["source", "data"] if settings["evaluation"][MMLU.name] else ["source"]


def is_standin(settings: dict, key: str) -> bool:
    """Return whether the model (`source`) or the data (`data`) is the stand-in."""
    source = settings[key]["source"] if key == "data" else settings[key]
    return source == STANDIN
