"""What evaluate_task finds."""

from typing import TypedDict


class Kind(TypedDict):
    """What a metric is, apart from its value."""

    higher_is_better: bool | None  # lm-eval's own; None if it does not say, or its members differ
    aggregation: str  # of the documents, by lm-eval's name
    weight_by_size: bool | None  # whether a group weighs its members by their documents; None for a plain task


class Metric(Kind):
    """One of lm-eval's figures."""

    value: float
    stderr: float | None


class Task(TypedDict):
    """tasks/<task>.json: every metric of one of lm-eval's tasks, or of a group and its members."""

    metrics: dict[str, Metric]  # by lm-eval's name, <metric>,<filter>
    members: dict[str, dict[str, Metric]]  # of a group: tasks, and groups in it
    groups: dict[str, list[str]]  # the tasks of each group, itself included; empty for a plain task
    documents: dict[str, int]  # of each task
    questions: int
    prompts_over_max_length: int  # questions that lost their beginning
    settings: dict
    task_version: str | None
    versions: dict[str, str]
