"""Define the schema of tasks/<task>.json, which evaluate_task writes."""

from typing import TypedDict


class Kind(TypedDict):
    """The properties of a metric apart from its value."""

    higher_is_better: bool | None  # as lm-eval says; None if it does not, or if a group's members differ
    aggregation: str  # how documents make the figure, by lm-eval's name
    weight_by_size: bool | None  # whether a group weighs its members by their documents; None for a plain task


class Metric(Kind):
    """A figure of lm-eval's."""

    value: float
    stderr: float | None


class Task(TypedDict):
    """The content of tasks/<task>.json: every metric of an lm-eval task, or of a group and its members."""

    metrics: dict[str, Metric]  # by lm-eval's name, <metric>,<filter>
    members: dict[str, dict[str, Metric]]  # of a group: the tasks and groups in it
    groups: dict[str, list[str]]  # the tasks of each group, the whole one included; empty for a plain task
    documents: dict[str, int]  # number of each task's documents
    questions: int
    stock_check: dict | None  # how far our engine's scores are from those of lm-eval's engine
    prompts_over_max_length: int  # questions whose beginning was cut off
    settings: dict
    task_version: str | None
    versions: dict[str, str]
