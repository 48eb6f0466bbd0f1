"""lm-eval's tasks and groups by name, on data that was downloaded."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import datasets
from lm_eval.tasks import TaskManager

from int4_qat.system import files, scratch
from int4_qat.system.errors import InputError

STDERR = "_stderr"


def find(task: str) -> TaskManager:
    """lm-eval's tasks; InputError if there is none of this name."""
    task_manager = TaskManager()
    if task not in [*task_manager.all_subtasks, *task_manager.all_groups]:
        raise InputError(f"evaluation.tasks: lm-eval {version('lm-eval')} has no task or group '{task}'")
    return task_manager


@contextlib.contextmanager
def as_on_the_hub(names: set[str], folder: Path) -> Iterator[None]:
    """Work where a data set's names on the Hub are folders: `datasets` looks there first, the task stays as it is."""
    with scratch.folder() as work, contextlib.chdir(work):
        for name in names:
            files.link(folder, work / name)
        datasets.config.HF_DATASETS_CACHE = work / "cache"
        yield


def dataset_names(task: str, index: dict) -> set[str]:
    """The Hub's names of the data sets of one of lm-eval's tasks, or of all tasks of a group."""
    config = index[task].cfg
    if config and "dataset_path" in config:
        return {config["dataset_path"]}
    members = config["task"] if config else index[task].tags
    members = [member if isinstance(member, str) else member["task"] for member in members]
    return set().union(*(dataset_names(member, index) for member in members))


def metrics_of(task: str, results: dict) -> tuple[dict[str, dict], dict[str, dict]]:
    """Metrics of a task, and of its members if it is a group; InputError if lm-eval has no figure for the whole."""
    found = {name: metrics(scores) for name, scores in results["results"].items()}
    whole = found.pop(task, None)
    if not whole:
        raise InputError(f"evaluation.tasks: lm-eval gives no figure for {task}; name its parts, {sorted(found)}")
    return whole, found


def metrics(scores: dict) -> dict[str, dict]:
    """value and stderr (None if lm-eval has none) by lm-eval's name, `<metric>,<filter>`."""
    found = {}
    for name, value in scores.items():
        metric, _, name_of_filter = name.partition(",")
        if name_of_filter and not metric.endswith(STDERR):
            stderr = scores.get(f"{metric}{STDERR},{name_of_filter}")
            found[name] = {"value": float(value), "stderr": stderr if isinstance(stderr, float) else None}
    return found
