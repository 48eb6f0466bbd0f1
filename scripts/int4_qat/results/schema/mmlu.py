"""What MMLU gives: the report of a shard, and mmlu.json, in which gather_mmlu puts the shards together."""

from typing import TypedDict


class Scores(TypedDict):
    """Some questions, by their number right."""

    accuracy: float
    stderr: float
    questions: int
    prompts_over_max_length: int  # questions that lost their beginning


class Subject(Scores):
    """A subject, as lm-eval reports it."""

    category: str
    task_version: str


class Run(TypedDict):
    """How the questions were asked."""

    by_subject: dict[str, Subject]
    stock_check: dict | None  # how far the scores of our engine are from those of lm-eval's
    settings: dict
    versions: dict[str, str]


class Shard(Run):
    """mmlu_shards/<shard>.json: some of the subjects."""


class Mmlu(Scores, Run):
    """mmlu.json: all of them."""

    subjects: int
    by_category: dict[str, Scores]
