"""Define the schema of chartqa.json, which evaluate_chartqa writes."""

from typing import TypedDict


class Figures(TypedDict):
    """The relaxed accuracy of all questions and of each type, or its standard errors; None without questions."""

    relaxed_overall: float | None
    human: float | None
    augmented: float | None


class ChartQA(Figures):
    """The content of chartqa.json: how well a model reads charts."""

    stderr: Figures
    questions: int
    dequantized: bool  # whether the weights in memory were not those on disk
    settings: dict
    versions: dict[str, str]
