"""What evaluate_task finds."""

from typing import TypedDict


class Metric(TypedDict):
    """One of lm-eval's figures."""

    value: float
    stderr: float | None


class Task(TypedDict):
    """tasks/<task>.json: every metric of one of lm-eval's tasks, or of a group and its members."""

    metrics: dict[str, Metric]  # by lm-eval's name, <metric>,<filter>
    members: dict[str, dict[str, Metric]]
    questions: int
    prompts_over_max_length: int  # questions that lost their beginning
    settings: dict
    task_version: str | None
    versions: dict[str, str]
