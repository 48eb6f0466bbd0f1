"""Recompute lm-eval's figures of a task from its values of single documents, for verification and the bootstrap.

A table of samples has one row per document and metric. Its columns are member (lm-eval's name of the task), document
(its number in that task), metric (<metric>,<filter>), value, and weight (1, or the words or bytes of the document). A
figure is a function of each member's sum(value) / sum(weight), so sums over resampled documents give resampled figures.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from int4_qat.results.schema.task import Kind, Metric, Task

COLUMNS = ["member", "document", "metric", "value", "weight"]
RELATIVE, ABSOLUTE = 1e-9, 1e-12  # tolerances for lm-eval's figures, whose sums run in another order
# Functions of sum(value) / sum(weight) by lm-eval's name (lm_eval.api.metrics); log-likelihoods are in nats.
AGGREGATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda mean: mean,
    "perplexity": lambda mean: np.exp(-mean),
    "weighted_perplexity": lambda mean: np.exp(-mean),
    "bits_per_byte": lambda mean: -mean / np.log(2),
}
WEIGHTED = ("weighted_perplexity", "bits_per_byte")  # their documents give pairs (log-likelihood, words or bytes)


class Pooled(NamedTuple):
    """The samples of one metric over its members, and how lm-eval combines them into one figure."""

    rows: pd.DataFrame  # sorted by member and document
    members: list[str]  # sorted
    documents: np.ndarray  # number of documents of each member, as lm-eval reports it
    aggregation: str
    weight_by_size: bool

    def figure(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the metric on its own scale, from sums over the documents of each member, ... x members."""
        return aggregate(values, weights, self.documents, self.aggregation, self.weight_by_size)


def aggregate(
    values: np.ndarray, weights: np.ndarray, documents: np.ndarray, aggregation: str, weight_by_size: bool
) -> np.ndarray:
    """Return a metric on its own scale, one figure for each row of sums.

    values and weights are sums over the documents of each member, ... x members; a task that is no group is its own
    only member. A group's figure is the mean of its members' figures, weighted by their numbers of documents or
    equally, as in lm_eval.api.metrics.aggregate_subtask_metrics.
    """
    figures = AGGREGATIONS[aggregation](np.asarray(values, float) / np.asarray(weights, float))
    sizes = np.asarray(documents, float) if weight_by_size else np.ones(figures.shape[-1])
    return figures @ (sizes / sizes.sum())


def has_score(kind: Kind, members: int) -> bool:
    """Return whether a metric is a mean over documents with a known direction, so that it can be resampled.

    members is the number of tasks behind the metric; the mean of several perplexities is no mean over documents.
    """
    if kind["aggregation"] == "mean":
        return kind["higher_is_better"] is not None
    return kind["aggregation"] in AGGREGATIONS and members < 2


def pooled(samples: pd.DataFrame, report: Task, name: str, metric: str) -> Pooled | None:
    """Return the samples behind a metric of a task, a group or its member; None if its documents do not give it."""
    entry = metrics_of(report, name)[metric]
    if entry["aggregation"] not in AGGREGATIONS:
        return None
    tasks = report["groups"].get(name, [name])
    rows = samples[(samples["metric"] == metric) & samples["member"].isin(tasks)]
    rows = rows.sort_values(["member", "document"], ignore_index=True)
    members = list(rows["member"].unique())
    documents = np.array([report["documents"][member] for member in members])
    return Pooled(rows, members, documents, entry["aggregation"], bool(entry["weight_by_size"]))


def metrics_of(report: Task, name: str) -> Mapping[str, Metric]:
    """Return the metrics of a report's task, or of one of its members."""
    return report["members"].get(name, report["metrics"])


def recompute(samples: pd.DataFrame, report: Task, name: str, metric: str) -> float | None:
    """Return a metric recomputed from its documents; None if they do not give it."""
    found = pooled(samples, report, name, metric)
    if found is None or found.rows.empty:
        return None
    sums = found.rows.groupby("member")[["value", "weight"]].sum()
    return float(found.figure(sums["value"].to_numpy(), sums["weight"].to_numpy()))


def misfits(samples: pd.DataFrame, report: Task) -> list[str]:
    """Return one line for each of lm-eval's figures that its documents should reproduce and do not."""
    lines = []
    for name in [report["settings"]["task"], *report["members"]]:
        for metric, entry in metrics_of(report, name).items():
            if entry["aggregation"] not in AGGREGATIONS:
                continue
            found = recompute(samples, report, name, metric)
            if found is None or not np.isclose(found, entry["value"], rtol=RELATIVE, atol=ABSOLUTE):
                given = "no documents" if found is None else found
                lines.append(f"{name}: expected {metric} {entry['value']} of its documents, found {given}")
    return lines


def table(rows: Sequence[dict]) -> pd.DataFrame:
    """Return the table of samples, in the same order for all variants."""
    types = {"member": "str", "document": "int64", "metric": "str", "value": "float64", "weight": "float64"}
    frame = pd.DataFrame(list(rows), columns=COLUMNS).astype(types)
    return frame.sort_values(["member", "document", "metric"], ignore_index=True)
