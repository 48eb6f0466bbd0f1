"""Recompute lmms-eval's figures of ChartQA from its answers, for verification and the bootstrap.

A table of samples has one row per question, with columns index (its number in the data), type (human or augmented)
and correct (1 or 0).
"""

import numpy as np
import pandas as pd

from int4_qat.results.schema.chartqa import ChartQA

TYPES = ("human", "augmented")
COLUMNS = {"index": "int64", "type": "str", "correct": "float64"}
OVERALL = "relaxed_overall"
RELATIVE = 1e-9  # tolerance for lmms-eval's figures, whose sums run in another order


def table(rows: list[dict]) -> pd.DataFrame:
    """Return the table of samples, in the same order for all variants."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    return frame.sort_values("index", ignore_index=True)


def figures(samples: pd.DataFrame) -> dict[str, float | None]:
    """Return the relaxed accuracy of all questions and of each type, or None where there are no questions."""
    parts = {OVERALL: samples} | {name: samples[samples["type"] == name] for name in TYPES}
    return {name: float(rows["correct"].mean()) if len(rows) else None for name, rows in parts.items()}


def misfits(samples: pd.DataFrame, report: ChartQA) -> list[str]:
    """Return one line for each of lmms-eval's figures that its answers do not reproduce."""
    lines = []
    if samples["index"].nunique() != report["questions"] or len(samples) != report["questions"]:
        lines.append(f"questions: expected {report['questions']}, each once, found {len(samples)} rows")
    for name, found in figures(samples).items():
        expected = report[name]
        if found != expected and (None in (found, expected) or not np.isclose(found, expected, rtol=RELATIVE, atol=0)):
            lines.append(f"{name}: expected {expected} of the answers, found {found}")
    return lines
