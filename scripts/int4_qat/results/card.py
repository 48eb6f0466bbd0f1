"""The model card of one quantized variant, from the JSON files of its results and from nothing else.

A figure that is missing, or that the summary holds differently from the file it came from, is an error. The metadata
block is huggingface_hub's own, and is read back by it.
"""

import functools
import json
import math
import shlex
from collections import Counter
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from int4_qat.config import metric_names, variants
from int4_qat.config.recipes import STANDIN
from int4_qat.data import hub
from int4_qat.results import measurements, metrics, summary
from int4_qat.results.measurements import DIVERGENCE, MMLU
from int4_qat.results.schema.divergence import Divergence
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError

TEMPLATES = sources.PACKAGE.parent / "templates"
TEMPLATE = "model_card.md.jinja"


def render(results: Path, settings: dict) -> str:
    """Return the card of a model's results; raise InputError that names the figure which is missing or stale."""
    figures = gather(results, settings)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    written = {"of_headline": functools.partial(of_headline, figures["summary"]["headline"])}
    functions = (percent, interval, number, share, size, p_value, code, shell)
    environment.filters |= {function.__name__: function for function in functions} | written
    try:
        text = environment.get_template(TEMPLATE).render(figures)
        card = f"---\n{metadata(figures).to_yaml()}\n---\n\n{text}"
    except (jinja2.UndefinedError, KeyError) as error:
        raise InputError(f"{results}: the model card lacks a figure ({error})") from None
    ModelCard(card)
    return card


def gather(results: Path, settings: dict) -> dict:
    """Return all that the template shows: the summary, and under their names the published variant's measurements."""
    name = settings["card"]["variant"]
    summary = files.read_json(results / "summary.json")
    rows = {row["name"]: row for row in summary["variants"]}
    if list(rows) != settings["variants"]:
        expected = f"expected the variants {settings['variants']}"
        raise InputError(f"{results / 'summary.json'}: {expected}, found {list(rows)}")
    check_fresh(results, summary, settings)
    folder = results / name
    weights, _ = variants.split(name)
    config = files.read_json(folder / "checkpoint" / "config.json")
    manifest = files.read_json(folder / "checkpoint" / "manifest.json")
    check_quantization(folder, manifest, settings)
    check_settings(folder, settings)
    measured = measurements.asked(settings)[name]
    runs = {one.name: measurements.read(folder, one) for one in measured}
    return {
        **dict.fromkeys(one.name for one in measurements.table((), {})),
        **{one.name: runs[one.name] for one in measured if not one.group},
        "measured": measured,
        "runs": runs,
        "versions": {package: of for run in runs.values() for package, of in run.get("versions", {}).items()},
        "summary": summary,
        "rows": rows,
        "name": name,
        "weights": weights,
        "baseline": rows[variants.BASELINE],
        "published": rows[name],
        "settings": settings,
        "recipe": settings["arms"].get(weights),
        "base": source_of(settings["source"]),
        "data": source_of(settings["data"]["source"]),
        "standins": [key for key in standins_of(settings) if is_standin(settings, key)],
        "manifest": manifest,
        "number": "{type}{num_bits}".format_map(manifest["scheme"]),
        "model_type": config["model_type"],
        "quantizer": config["quantization_config"]["quant_method"],
        "auto_class": "AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForCausalLM",
        "profile": profile(settings),
        "pairs": [pair for pair in summary["comparisons"] if pair["variant"] == name],
        "asked": {
            one.name: {variant: measurements.part(row, one) for variant, row in rows.items()}
            for one in measured
            if one.samples and one.samples.of_choices
        },
        # What lm-eval ran besides MMLU, by task: metric, value, stderr.
        "tasks": rows[name]["tasks"],
        "charts": {variant: row["chartqa"] for variant, row in rows.items() if row["chartqa"]},
        "kept": Counter(layer["reason"] for layer in manifest["layers"] if not layer["quantized"]),
    }


def profile(settings: dict) -> str:
    """Return what a run of these settings is started with."""
    if settings["device"] == "cpu":
        return "profiles/demo"
    if is_standin(settings, "source"):
        return "profiles/gpu --sdm conda --configfile profiles/demo/demo.yaml profiles/gpu/demo.yaml"
    return "slurm --sdm conda"


def standins_of(settings: dict) -> list[str]:
    """Return what may be made up of that of which the card shows figures: the model, and MMLU's data if it is asked."""
    return ["source", "data"] if settings["evaluation"][MMLU.name] else ["source"]


def is_standin(settings: dict, key: str) -> bool:
    """Return whether the model (`source`) or the data (`data`) are made up."""
    source = settings[key]["source"] if key == "data" else settings[key]
    return source == STANDIN


def source_of(source: str) -> dict:
    """Return name, link and revision of a source; a local folder has neither link nor revision."""
    remote = hub.parse(source)
    if remote is None:
        return {"name": Path(source).name, "repository": None, "revision": None, "link": None}
    kind = "datasets/" if remote.repository_type == "dataset" else ""
    link = f"https://huggingface.co/{kind}{remote.repository}"
    return {"name": remote.repository, "repository": remote.repository, "revision": remote.revision, "link": link}


def check_fresh(results: Path, summary: dict, settings: dict) -> None:
    """Raise InputError if a figure that the summary repeats is not that of its file."""
    shown_of = measurements.summarized(measurements.asked(settings))
    for row in summary["variants"]:
        for one in shown_of[row["name"]]:
            shown, content = measurements.part(row, one) or {}, measurements.read(results / row["name"], one)
            path = results / row["name"] / one.file
            if one is DIVERGENCE:
                check_texts(results / "summary.json", shown, path, content)
            else:
                compare(results / "summary.json", shown, path, content)
    compare(results / "summary.json", summary["costs"], results / "costs.json", files.read_json(results / "costs.json"))


def check_texts(name: Path, shown: dict, path: Path, content: Divergence) -> None:
    """Raise InputError if a figure of a text is not that of its file, but for the order in which it is added up."""
    for text, found in content["texts"].items():
        for metric in metric_names.OF_TEXTS:
            ours, theirs = shown[text][metric]["value"], found[metric]
            if not math.isclose(ours, theirs, **summary.ROUNDING):
                raise InputError(f"{path}: {metric} of {text} is {theirs}, {name} says {ours}; run the workflow again")


def check_settings(folder: Path, settings: dict) -> None:
    """Raise InputError if the published variant was measured by other settings than those that the card shows."""
    for one in measurements.asked(settings)[folder.name]:
        if one.setting:
            for ran in settings_of(measurements.read(folder, one)):
                compare("the config", settings["evaluation"][one.setting], folder / one.file, ran)


def settings_of(content: dict) -> list[dict]:
    """Return by what settings something was measured: of texts each by its own."""
    return list(content["protocol"].values()) if "protocol" in content else [content.get("settings", content)]


def check_quantization(folder: Path, manifest: dict, settings: dict) -> None:
    """Raise InputError if the published variant was quantized otherwise than the card says."""
    wanted = settings["quantizations"][variants.split(folder.name)[1]]
    path = folder / "checkpoint" / "manifest.json"
    compare("the config", {"ignore": []} | wanted, path, manifest["scheme"] | manifest)


def compare(name: Path | str, ours: dict, path: Path, theirs: dict) -> None:
    """Raise InputError that names the first key which two files hold differently."""
    for key in sorted(ours.keys() & theirs.keys()):
        if key == "batches":
            for our_batch, their_batch in zip(ours[key], theirs[key], strict=True):
                compare(name, our_batch, path, their_batch)
        elif ours[key] != theirs[key]:
            raise InputError(f"{path}: {key} is {theirs[key]}, {name} says {ours[key]}; run the workflow again")


def metadata(figures: dict) -> ModelCardData:
    """Return what the Hub indexes."""
    settings, base, data = figures["settings"], figures["base"], figures["data"]
    repository = settings["card"]["repository"]
    recipe = figures["recipe"]
    return ModelCardData(
        base_model=base["repository"],
        base_model_relation="quantized" if base["repository"] else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        language="en",
        license=settings["card"]["license"],
        license_link=settings["card"]["license_link"],
        datasets=[data["repository"]] if data["repository"] else None,
        metrics=["accuracy"] if figures["asked"] else None,
        tags=[
            figures["quantizer"],
            figures["number"],
            *(["qat"] if recipe and recipe["quantization"] else []),
            figures["model_type"],
            *(["stand-in"] if figures["standins"] else []),
        ],
        model_name=repository.split("/")[1] if repository else f"{settings['model']}-{figures['name']}",
        eval_results=[*question_results(figures), *task_results(figures)] or None,
    )


def question_results(figures: dict) -> list[EvalResult]:
    """Return the published variant's accuracies on MMLU and on one's own questions."""
    settings, standin = (
        figures["settings"],
        " (a stand-in with invented facts)" if "data" in figures["standins"] else "",
    )
    sources = {entry["name"]: source_of(entry["source"]) for entry in settings["evaluation"]["questions"]}
    names = dict.fromkeys(sources) | {MMLU.name: f"MMLU{standin}"}
    sources[MMLU.name] = figures["data"]
    return [
        EvalResult(
            task_type="multiple-choice",
            task_name="multiple choice",
            dataset_type=sources[name]["repository"] or name,
            dataset_name=names[name] or name,
            dataset_config="all",
            dataset_split="test",
            dataset_revision=sources[name]["revision"],
            metric_type="accuracy",
            metric_name="accuracy",
            metric_value=round(scores[figures["name"]]["accuracy"], 4),
        )
        for name, scores in figures["asked"].items()
    ]


def task_results(figures: dict) -> list[EvalResult]:
    """Return the published variant's further tasks, each on its own data set."""
    sources = {task["task"]: source_of(task["source"]) for task in figures["settings"]["evaluation"]["tasks"]}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=sources[task]["repository"] or task,
            dataset_name=task,
            dataset_config=task,
            dataset_revision=sources[task]["revision"],
            metric_type=found["metric"].partition(",")[0],
            metric_value=round(found["value"], 4),
        )
        for task, found in figures["tasks"].items()
    ]


def percent(value: float | None, form: str = ".2f") -> str:
    """Return '71.51%'; a ratio that is None is not resolved."""
    return "not resolved" if value is None else f"{100 * value:{form}}%"


def interval(ci95: list[float] | None, form: str = ".2f") -> str:
    """Return ' [71.13, 71.89]', in percent; nothing where there is none."""
    return f" [{100 * ci95[0]:{form}}, {100 * ci95[1]:{form}}]" if ci95 else ""


def number(shown: dict, form: str) -> str:
    """Return '0.1234 [0.1210, 0.1258]' of a value with its interval."""
    low, high = shown["ci95"] or (None, None)
    return f"{shown['value']:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def share(shown: dict, form: str = ".2f") -> str:
    """Return '65.00% [58.00, 71.00]' of a value with its interval."""
    return percent(shown["value"], form) + interval(shown["ci95"], form)


def of_headline(headline: dict, value: float) -> str:
    """Return a value of the headline, in percent if it is a share."""
    return percent(value) if headline["unit"] == metrics.SHARE.unit else f"{value:.4f}"


def size(gigabytes: float) -> str:
    """Return a size in GB, as the card, or in MB where that would be zeros."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{1e3 * gigabytes:.2f} MB"


def p_value(p: float) -> str:
    """Return '0.012', or that it is smaller than one would print."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def code(value: object) -> str:
    """Return a setting as the config writes it."""
    return "`{}`".format(json.dumps(value).replace("|", "\\|"))  # a bar would end the cell of a table


def shell(words: list[str]) -> str:
    """Return arguments as one types them."""
    return shlex.join(words)
