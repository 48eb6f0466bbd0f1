"""Load lm-eval's tasks and groups by name, on downloaded data, and read their metrics."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import datasets
from lm_eval.api.group import Group
from lm_eval.api.registry import AGGREGATION_REGISTRY
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from int4_qat.system import files, scratch
from int4_qat.system.errors import InputError

STDERR = "_stderr"
DEFAULT = "mean"  # lm-eval's own aggregation, if a task names none for a metric


class Loaded(NamedTuple):
    """A task or a group with its data, as lm-eval loads it."""

    name: str
    item: Task | Group  # what lm-eval is asked to evaluate
    tasks: dict[str, Task]  # the task itself, or all tasks of the group
    groups: dict[str, Group]  # the group itself and all groups in it; empty for a task


def find(task: str) -> TaskManager:
    """Return lm-eval's task manager; raise InputError if it has no task or group of this name."""
    task_manager = TaskManager()
    if task not in [*task_manager.all_subtasks, *task_manager.all_groups]:
        raise InputError(f"evaluation.tasks: expected a task or group of lm-eval {version('lm-eval')}, found '{task}'")
    return task_manager


def load(task: str, task_manager: TaskManager) -> Loaded:
    """Return a task or a group with its data; errors of lm-eval and of the task's own code are passed on unchanged."""
    found = task_manager.load([task])
    item = found["groups"][task] if task in found["groups"] else found["tasks"][task]
    return Loaded(task, item, found["tasks"], found["groups"])


@contextlib.contextmanager
def as_on_the_hub(names: set[str], folder: Path) -> Iterator[None]:
    """Work where a data set's Hub names are folders: `datasets` looks there first, so the task can stay as it is."""
    with scratch.folder() as work, contextlib.chdir(work):
        for name in names:
            files.link(folder, work / name)
        datasets.config.HF_DATASETS_CACHE = work / "cache"
        yield


def dataset_names(task: str, index: dict) -> set[str]:
    """Return the Hub names of the data sets of an lm-eval task, or of all tasks of a group."""
    config = index[task].cfg
    if config and "dataset_path" in config:
        return {config["dataset_path"]}
    return set().union(*(dataset_names(member, index) for member in members_of(config or {"task": index[task].tags})))


def members_of(config: dict) -> Iterator[str]:
    """Yield the names of the members in a group's config, including those of groups that are defined in it."""
    for member in config["task"]:
        if isinstance(member, str):
            yield member
        elif "group" in member:
            yield from members_of(member)
        else:
            yield member["task"]


def metrics_of(loaded: Loaded, results: dict) -> tuple[dict[str, dict], dict[str, dict]]:
    """Return the metrics of a task, and of its members if it is a group.

    Raise InputError if lm-eval has no figure for the task or the group as a whole.
    """
    found = {name: metrics(name, loaded, results) for name in results["results"]}
    whole = found.pop(loaded.name, None)
    if not whole:
        raise InputError(
            f"evaluation.tasks: expected a figure for {loaded.name}, found none; name its parts, {sorted(found)}"
        )
    return whole, found


def metrics(name: str, loaded: Loaded, results: dict) -> dict[str, dict]:
    """Return value, stderr (None if lm-eval has none) and kind, by lm-eval's name `<metric>,<filter>`."""
    scores, found = results["results"][name], {}
    for key, value in scores.items():
        metric, _, name_of_filter = key.partition(",")
        if name_of_filter and not metric.endswith(STDERR):
            stderr = scores.get(f"{metric}{STDERR},{name_of_filter}")
            asked = [task for task in tasks_of(name, loaded) if key in results["results"][task.task_name]]
            found[key] = {
                "value": float(value),
                "stderr": stderr if isinstance(stderr, float) else None,
                "higher_is_better": direction(asked, metric),
                "aggregation": ", ".join(sorted({aggregation(task, metric) for task in asked})),
                "weight_by_size": weight_by_size(loaded.groups[name], key) if name in loaded.groups else None,
            }
    return found


def tasks_of(name: str, loaded: Loaded) -> list[Task]:
    """Return the task of this name, or all tasks of the group of this name."""
    return loaded.groups[name].get_all_tasks() if name in loaded.groups else [loaded.tasks[name]]


def names_of(name: str, loaded: Loaded) -> list[str]:
    """Return the sorted names of the tasks that `tasks_of` returns."""
    return sorted(task.task_name for task in tasks_of(name, loaded))


def direction(tasks: list[Task], metric: str) -> bool | None:
    """Return whether a higher value is better according to lm-eval, or None if it does not say or the tasks differ."""
    said = {task.higher_is_better().get(metric) for task in tasks}
    return said.pop() if said in ({True}, {False}) else None


def aggregation(task: Task, metric: str) -> str:
    """Return lm-eval's name of the function that aggregates the values of documents.

    The name of a task's own function is prefixed with `own`, since lm-eval may have a function of the same name.
    """
    function = task.aggregation().get(metric)
    if function is None:
        return DEFAULT
    known = [name for name, registered in AGGREGATION_REGISTRY.items() if registered is function]
    return known[0] if known else f"own {getattr(function, '__name__', 'function')}"


def weight_by_size(group: Group, key: str) -> bool:
    """Return whether a group weights its members by their number of documents in the figure of this name."""
    metric, _, name_of_filter = key.partition(",")
    asked = [
        entry
        for entry in group.aggregate_metric_list
        if entry.metric == metric and (entry.filter_list is None or name_of_filter in entry.filter_list)
    ]
    return asked[-1].weight_by_size
