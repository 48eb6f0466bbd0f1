"""Give all metrics one form: a score of which more is better, and its bootstrap.

The variants were asked the same units (questions, documents, windows of a text), so each resample draws the same units
for all of them, and their differences are paired. The score of a variant is sum(values) / sum(weights) over the units,
or the mean of that ratio over the strata. Its sign is flipped where lower is better. For a perplexity it is the mean
log-likelihood per token, since ratios of perplexities are what counts. recovered = (x - q) / (b - q), from the scores
of variant x, base-bf16 b and the quantized base q; recovered_of_calibrated has a calibrated base in q's place.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from int4_qat.config import metric_names, variants
from int4_qat.results import statistics, task_metrics
from int4_qat.results.task_metrics import AGGREGATIONS

WEIGHT = "weight"


class Scale(NamedTuple):
    """The meaning of a score: its value, direction and units."""

    value: Callable[[float], float]  # of a score, as reported
    higher_is_better: bool
    unit: str  # of reported values
    unit_of_scores: str


SHARE = Scale(lambda score: score, True, "share", "share")
HIGHER = Scale(lambda score: score, True, "", "")
LOWER = Scale(lambda score: -score, False, "", "")
DIVERGENCE = Scale(lambda score: -score, False, "nats per token", "nats per token")
BITS = Scale(AGGREGATIONS["bits_per_byte"], False, "bits a byte", "nats a byte")
PERPLEXITY = Scale(AGGREGATIONS["perplexity"], False, "", "nats")


class Metric(NamedTuple):
    """A metric of several variants, with their units summed by stratum."""

    name: str
    scale: Scale
    sums: pd.DataFrame  # one row per stratum, one column per variant, and one for the weights
    resampled: dict[str, np.ndarray]  # by stratum: resamples x columns
    varies: bool  # whether any stratum has two or more units; otherwise they show no variation
    pooled: bool = True  # over all strata; otherwise the score is the mean over the strata
    of_text: tuple[str, str] | None = None  # the text and its metric that this is, if any

    @property
    def variants(self) -> list[str]:
        """Return the variants that have this metric."""
        return [name for name in self.sums if name != WEIGHT]


class Scores(NamedTuple):
    """The scores by variant, and a row of them for each resample."""

    plain: dict[str, float]
    resampled: pd.DataFrame


def make(
    name: str,
    scale: Scale,
    values: pd.DataFrame,
    weights: pd.Series | None = None,
    pooled: bool = True,
    resamples: int = statistics.RESAMPLES,
) -> Metric:
    """Return a metric from values: a row per unit, with its stratum first in the index, and a column per variant."""
    units = values.astype(float).assign(**{WEIGHT: 1.0 if weights is None else weights})
    drawn = statistics.resample(units, resamples)
    strata = units.groupby(level=0)
    return Metric(name, scale, strata.sum(), drawn, bool(strata.size().max() > 1), pooled)


def scores(metric: Metric, strata: Iterable[str] | None = None) -> Scores:
    """Return the scores over all strata, or over the given ones."""
    chosen = list(metric.sums.index if strata is None else strata)
    plain = ratio(list(metric.sums.loc[chosen].to_numpy()[:, None]), metric.pooled)[0]
    resampled = ratio([metric.resampled[stratum] for stratum in chosen], metric.pooled)
    return Scores(
        dict(zip(metric.variants, plain.tolist(), strict=True)), pd.DataFrame(resampled, columns=metric.variants)
    )


def ratio(sums: list[np.ndarray], pooled: bool) -> np.ndarray:
    """Return values over weights, rows x variants, from the sums of each stratum, rows x (variants, weight)."""
    if pooled:
        total = sum(sums)
        return total[:, :-1] / total[:, -1:]
    return sum(each[:, :-1] / each[:, -1:] for each in sums) / len(sums)


def value_of(metric: Metric, score: float) -> float:
    """Return the reported value of a score."""
    return float(metric.scale.value(score)) + 0.0  # avoids a minus sign before zero


def interval_of(metric: Metric, resampled: np.ndarray) -> list[float] | None:
    """Return the interval of a value, or None if the units do not vary."""
    if not metric.varies:
        return None
    return sorted(value_of(metric, score) for score in statistics.interval(resampled))


def describe(metric: Metric) -> dict:
    """Return what a reader must know about a metric: name, direction and units."""
    scale = metric.scale
    units = {"unit": scale.unit, "unit_of_differences": scale.unit_of_scores}
    return {"metric": metric.name, "higher_is_better": scale.higher_is_better} | units


def best(found: Scores, names: Iterable[str]) -> str | None:
    """Return the variant with the best score among the named ones, or None if none of them was measured."""
    return max((name for name in names if name in found.plain), key=found.plain.get, default=None)


def recovery(metric: Metric, found: Scores, name: str, reference: str, calibrated: str | None) -> dict:
    """Return how much a variant recovered of what quantizing a reference cost, and of what a calibrated base lost.

    Either is None where its cost is not resolved.
    """
    recovered, of_calibrated = (recovery_of(metric, found, name, base) for base in (reference, calibrated))
    return both(recovered, of_calibrated, calibrated)


def recovery_of(metric: Metric, found: Scores, name: str, base: str | None) -> dict:
    """Return how much a variant recovered of what the quantization of one base cost."""
    if not {name, base, variants.BASELINE} <= found.plain.keys() or not metric.varies:
        return statistics.NOT_RECOVERED
    return statistics.recovery(name, found.plain, found.resampled, variants.BASELINE, base)


def both(recovered: dict, of_calibrated: dict, calibrated: str | None) -> dict:
    """Return two recoveries under the keys that they have in the summary."""
    keys = ("recovered", "recovered_ci95", "recovered_resolved")
    renamed = {key.replace("recovered", "recovered_of_calibrated"): of_calibrated[key] for key in keys}
    return recovered | {"calibrated_baseline": calibrated} | renamed


NOT_RECOVERED = both(statistics.NOT_RECOVERED, statistics.NOT_RECOVERED, None)


def joined(tables: Mapping[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """Return one column of the variants' tables, side by side."""
    return pd.DataFrame({name: table[column] for name, table in tables.items()})


def of_answers(name: str, tables: Mapping[str, pd.DataFrame], _: dict) -> list[Metric]:
    """Return the share of right answers; the strata are the subjects, or ChartQA's types of questions."""
    return [make(name, SHARE, joined(tables, "correct"))]


def of_task(name: str, tables: Mapping[str, pd.DataFrame], content: dict) -> list[Metric]:
    """Return the chosen metric of an lm-eval task; its strata are the members of a group.

    Return an empty list if the metric's documents do not make a score.
    """
    of_metric = {variant: table[table["metric"] == content["metric"]] for variant, table in tables.items()}
    rows = next(iter(of_metric.values()))
    if not task_metrics.has_score(content, len(rows.index.unique(level=0))):
        return []
    scale = scale_of(content)
    values = joined(of_metric, "value") * (-1 if scale is LOWER else 1)
    return [make(name, scale, values, rows["weight"], content["weight_by_size"] is not False)]


def scale_of(kind: dict) -> Scale:
    """Return the scale of an lm-eval metric; for metrics of likelihoods, scores are mean log-likelihoods."""
    if kind["aggregation"] == "mean":
        return HIGHER if kind["higher_is_better"] else LOWER
    return BITS if kind["aggregation"] == "bits_per_byte" else PERPLEXITY


def of_texts(_: str, tables: Mapping[str, pd.DataFrame], __: dict) -> list[Metric]:
    """Return the metrics of the divergence from base-bf16 on each text; the units are the text's windows."""
    columns = {
        "kl": ("kl", DIVERGENCE, -1),
        "top1_agreement": ("same_top1", SHARE, 1),
        "perplexity": ("loss", PERPLEXITY, -1),
    }
    found = []
    for text in next(iter(tables.values())).index.unique("text"):
        of_text = {name: table.loc[[text]] for name, table in tables.items()}
        tokens = next(iter(of_text.values()))["tokens"]
        for metric in metric_names.OF_TEXTS:
            column, scale, sign = columns[metric]
            made = make(metric_names.of_text(text, metric), scale, sign * joined(of_text, column), tokens)
            found.append(made._replace(of_text=(text, metric)))
    return found
