"""Make the metadata of a model card, which the Hub indexes."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from int4_qat.data import hub
from int4_qat.results.measurements import MMLU


def make(figures: dict) -> ModelCardData:
    """Return the metadata that the Hub indexes."""
    settings, base = figures["settings"], figures["base"]
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
        datasets=datasets(figures) or None,
        metrics=["accuracy"] if figures["asked"] else None,
        tags=[
            *(figures["quantizers"] if len(figures["quantizers"]) == 1 else []),  # a card of two formats names none
            figures["number"],
            *(["qat"] if recipe and recipe["quantization"] else []),
            figures["model_type"],
            *(["stand-in"] if figures["standins"] else []),
        ],
        model_name=repository.split("/")[1] if repository else f"{settings['model']}-{figures['name']}",
        eval_results=[*question_results(figures), *task_results(figures)] or None,
    )


def datasets(figures: dict) -> list[str]:
    """Return the data sets on the Hub that the published variant was trained or calibrated on."""
    trained = [text["source"] for text in figures["training_texts"].values()]
    calibrated = [source or figures["data"] for source in figures["calibration_texts"].values()]
    read = [*trained, *calibrated]
    return list(dict.fromkeys(source["repository"] for source in read if source["repository"]))


def question_results(figures: dict) -> list[EvalResult]:
    """Return the published variant's accuracies on MMLU and on the user's own questions."""
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
    """Return the published variant's results on further tasks, each on its own data set."""
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


def source_of(source: str) -> dict:
    """Return name, repository, revision and link of a source; all but the name are None for a local folder."""
    remote = hub.parse(source)
    if remote is None:
        return {"name": Path(source).name, "repository": None, "revision": None, "link": None}
    kind = "datasets/" if remote.repository_type == "dataset" else ""
    link = f"https://huggingface.co/{kind}{remote.repository}"
    return {"name": remote.repository, "repository": remote.repository, "revision": remote.revision, "link": link}
