"""What evaluate_chartqa finds."""

from typing import TypedDict


class Figures(TypedDict):
    """Relaxed accuracy of all questions and of those of each kind, None without questions; or its standard errors."""

    relaxed_overall: float | None
    human: float | None
    augmented: float | None


class ChartQA(Figures):
    """chartqa.json: what a model reads in charts."""

    stderr: Figures
    questions: int
    dequantized: bool  # the weights in memory were not those on the disk
    settings: dict
    versions: dict[str, str]
