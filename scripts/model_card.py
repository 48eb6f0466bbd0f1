"""Write the model card of one int4 variant, from the JSON files of its results and from nothing else.

A figure that is missing, or that the summary holds differently from the file it came from, is an error. The metadata
block is huggingface_hub's own, and is read back by it.

    python scripts/model_card.py --results results/demo --settings '{"model": "demo", "arms": {...}, ...}' \\
        --output results/demo/model_card.md
"""

import argparse
import json
import shlex
from collections import Counter
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from int4_qat import errors, files, hub, variants
from int4_qat.errors import InputError
from int4_qat.recipes import STANDIN

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = "model_card.md.jinja"
MMLU = "mmlu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, help="folder with summary.json and the variants")
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: the config of this model")
    parser.add_argument("--output", required=True, type=Path, help="model_card.md")
    arguments = parser.parse_args()
    card = render(arguments.results, arguments.settings)
    with files.whole(arguments.output) as unfinished:
        unfinished.write_text(card, encoding="utf-8")


def render(results: Path, settings: dict) -> str:
    """The card; InputError names the figure that is missing or stale."""
    figures = gather(results, settings)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {function.__name__: function for function in (percent, interval, size, p_value, code, shell)}
    try:
        text = environment.get_template(TEMPLATE).render(figures)
        card = f"---\n{metadata(figures).to_yaml()}\n---\n\n{text}"
    except (jinja2.UndefinedError, KeyError) as error:
        raise InputError(f"{results}: the model card lacks a figure ({error})") from None
    ModelCard(card)
    return card


def gather(results: Path, settings: dict) -> dict:
    """All that the template shows; the files of the published variant stand beside the summary."""
    name = settings["card"]["variant"]
    summary = files.read_json(results / "summary.json")
    rows = {row["name"]: row for row in summary["variants"]}
    if list(rows) != settings["variants"]:
        raise InputError(
            f"{results / 'summary.json'}: expected the variants {settings['variants']}, found {list(rows)}"
        )
    check_fresh(results, summary)
    folder = results / name
    weights, _ = variants.split(name)
    config = files.read_json(folder / "checkpoint" / "config.json")
    figures = {
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
        "standins": [key for key in ("source", "data") if is_standin(settings, key)],
        "manifest": files.read_json(folder / "checkpoint" / "manifest.json"),
        "model_type": config["model_type"],
        "auto_class": "AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForCausalLM",
        "profile": profile(settings),
        "serving": files.read_json(folder / "serving.json") if settings["evaluation"]["serving"] else None,
        **{key: files.read_json(folder / f"{key}.json") for key in (MMLU, "memory", "latency")},
        "pairs": [pair for pair in summary["comparisons"] if pair["variant"] == name],
        # What lm-eval ran besides MMLU, by task: metric, value, stderr.
        "tasks": rows[name]["tasks"],
        "charts": {variant: row["chartqa"] for variant, row in rows.items() if row["chartqa"]},
    }
    check_settings(folder, figures)
    figures["kept"] = Counter(layer["reason"] for layer in figures["manifest"]["layers"] if not layer["quantized"])
    return figures


def profile(settings: dict) -> str:
    """What a run of these settings is started with."""
    if settings["device"] == "cpu":
        return "profiles/demo"
    if is_standin(settings, "source"):
        return "profiles/gpu --sdm conda --configfile profiles/demo/demo.yaml profiles/gpu/demo.yaml"
    return "slurm --sdm conda"


def is_standin(settings: dict, key: str) -> bool:
    source = settings[key]["source"] if key == "data" else settings[key]
    return source == STANDIN


def source_of(source: str) -> dict:
    """Name, link and revision of a source; a local folder has neither link nor revision."""
    remote = hub.parse(source)
    if remote is None:
        return {"name": Path(source).name, "repository": None, "revision": None, "link": None}
    kind = "datasets/" if remote.repository_type == "dataset" else ""
    link = f"https://huggingface.co/{kind}{remote.repository}"
    return {"name": remote.repository, "repository": remote.repository, "revision": remote.revision, "link": link}


def check_fresh(results: Path, summary: dict) -> None:
    """Every figure that the summary repeats must be that of its file."""
    for row in summary["variants"]:
        for key, source in row["source"].items():
            if key in row and source.endswith(".json"):
                path = results / source
                compare(results / "summary.json", row[key], path, files.read_json(path))
    compare(results / "summary.json", summary["costs"], results / "costs.json", files.read_json(results / "costs.json"))


def check_settings(folder: Path, figures: dict) -> None:
    """The results must come from the settings that the card shows."""
    settings = figures["settings"]
    for path, wanted, found in (
        (folder / "mmlu.json", settings["evaluation"]["mmlu"], figures[MMLU]["settings"]),
        (folder / "latency.json", settings["evaluation"]["latency"], figures["latency"]),
        (folder / "memory.json", settings["evaluation"]["memory"], figures["memory"]),
        (folder / "checkpoint" / "manifest.json", settings["quantization"], figures["manifest"]),
    ):
        compare("the config", wanted, path, found)


def compare(name: Path | str, ours: dict, path: Path, theirs: dict) -> None:
    """InputError names the first key that two files hold differently."""
    for key in sorted(ours.keys() & theirs.keys()):
        if key == "batches":
            for our_batch, their_batch in zip(ours[key], theirs[key], strict=True):
                compare(name, our_batch, path, their_batch)
        elif ours[key] != theirs[key]:
            raise InputError(f"{path}: {key} is {theirs[key]}, {name} says {ours[key]}; run the workflow again")


def metadata(figures: dict) -> ModelCardData:
    """What the Hub indexes."""
    settings, base, data = figures["settings"], figures["base"], figures["data"]
    repository = settings["card"]["repository"]
    accuracy = EvalResult(
        task_type="multiple-choice",
        task_name="multiple choice",
        dataset_type=data["repository"] or "mmlu",
        dataset_name="MMLU" + (" (a stand-in with invented facts)" if "data" in figures["standins"] else ""),
        dataset_config="all",
        dataset_split="test",
        dataset_revision=data["revision"],
        metric_type="accuracy",
        metric_name="accuracy",
        metric_value=round(figures["published"]["mmlu"]["accuracy"], 4),
    )
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
        metrics=["accuracy"],
        tags=[
            "torchao",
            "int4",
            *(["qat"] if recipe and recipe["qat_scheme"] else []),
            figures["model_type"],
            *(["stand-in"] if figures["standins"] else []),
        ],
        model_name=repository.split("/")[1] if repository else f"{settings['model']}-{figures['name']}",
        eval_results=[accuracy, *task_results(figures)],
    )


def task_results(figures: dict) -> list[EvalResult]:
    """The published variant's further tasks, each on its own data set."""
    sources = {task["task"]: source_of(task["source"]) for task in figures["settings"]["evaluation"].get("tasks", [])}
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
    """'71.51%'; a ratio that is None is not resolved."""
    return "not resolved" if value is None else f"{100 * value:{form}}%"


def interval(ci95: list[float] | None, form: str = ".2f") -> str:
    """' [71.13, 71.89]', in percent; nothing where there is none."""
    return f" [{100 * ci95[0]:{form}}, {100 * ci95[1]:{form}}]" if ci95 else ""


def size(gigabytes: float) -> str:
    """In GB, as the card, or in MB where that would be zeros."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{1e3 * gigabytes:.2f} MB"


def p_value(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def code(value: object) -> str:
    """A setting as it stands in the config."""
    return "`{}`".format(json.dumps(value).replace("|", "\\|"))  # a bar would end the cell of a table


def shell(words: list[str]) -> str:
    """Arguments as one types them."""
    return shlex.join(words)


if __name__ == "__main__":
    errors.run(main)
