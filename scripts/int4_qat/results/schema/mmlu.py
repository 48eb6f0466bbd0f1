"""Define the schemas of a shard's report of MMLU, and of mmlu.json, in which gather_mmlu combines the shards."""

from typing import TypedDict


class Scores(TypedDict):
    """The accuracy on a set of questions."""

    accuracy: float
    stderr: float
    questions: int
    prompts_over_max_length: int  # questions whose beginning was cut off


class Subject(Scores):
    """The scores of one subject, as lm-eval reports them."""

    category: str
    task_version: str


class Run(TypedDict):
    """The scores by subject, and how the questions were asked."""

    by_subject: dict[str, Subject]
    stock_check: dict | None  # how far our engine's scores are from those of lm-eval's engine
    settings: dict
    versions: dict[str, str]


class Shard(Run):
    """The content of mmlu_shards/<shard>.json: some of the subjects."""


class Mmlu(Scores, Run):
    """The content of mmlu.json: all subjects."""

    subjects: int
    by_category: dict[str, Scores]
