"""A task's figures from its documents, whole or resampled, equal those of lm-eval's own functions."""

import numpy as np
import pandas as pd
import pytest
from lm_eval.api import metrics

from int4_qat.results import task_metrics

SIZES = [3, 1, 6]
PAIRS = ("weighted_perplexity", "bits_per_byte")


def draw(aggregation, seed=0):
    """Return log-likelihoods or scores of the documents of three members, with their weights."""
    generator = np.random.default_rng(seed)
    values = [-2 * generator.random(size) for size in SIZES]
    weights = [generator.integers(1, 9, size) if aggregation in PAIRS else np.ones(size) for size in SIZES]
    return values, weights


def of_lm_eval(aggregation, values, weights):
    """Return lm-eval's figure of one member's documents."""
    items = list(zip(values, weights, strict=True)) if aggregation in PAIRS else list(values)
    return getattr(metrics, aggregation)(items)


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("aggregation", task_metrics.AGGREGATIONS)
def test_each_resample_is_what_lm_eval_makes_of_its_documents(aggregation, by_size):
    values, weights = draw(aggregation)
    generator = np.random.default_rng(1)
    picks = [[generator.integers(0, size, size) for size in SIZES] for _ in range(4)]
    sums = [
        np.array([[one[pick].sum() for one, pick in zip(of, row, strict=True)] for row in picks])
        for of in (values, weights)
    ]
    found = task_metrics.aggregate(*sums, np.array(SIZES), aggregation, by_size)
    expected = []
    for row in picks:
        figures = [of_lm_eval(aggregation, values[m][pick], weights[m][pick]) for m, pick in enumerate(row)]
        expected.append(metrics.aggregate_subtask_metrics(figures, SIZES, by_size))
    assert found.shape == (4,)
    assert found == pytest.approx(expected, rel=1e-12)


def report_of(aggregation, by_size, values, weights):
    """Return the samples and the report of a group `all` of three members."""
    names = ["a", "b", "c"]
    rows = [
        {"member": name, "document": n, "metric": "m,none", "value": value, "weight": weight}
        for name, of, by in zip(names, values, weights, strict=True)
        for n, (value, weight) in enumerate(zip(of, by, strict=True))
    ]
    figures = {name: of_lm_eval(aggregation, values[m], weights[m]) for m, name in enumerate(names)}
    whole = metrics.aggregate_subtask_metrics(list(figures.values()), SIZES, by_size)
    kind = {"stderr": None, "higher_is_better": False, "aggregation": aggregation}
    report = {
        "metrics": {"m,none": kind | {"value": whole, "weight_by_size": by_size}},
        "members": {n: {"m,none": kind | {"value": v, "weight_by_size": None}} for n, v in figures.items()},
        "groups": {"all": names},
        "documents": dict(zip(names, SIZES, strict=True)),
        "settings": {"task": "all"},
    }
    return task_metrics.table(rows[::-1]), report


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("aggregation", task_metrics.AGGREGATIONS)
def test_a_report_follows_from_its_samples_and_what_does_not_is_named(aggregation, by_size):
    samples, report = report_of(aggregation, by_size, *draw(aggregation))
    assert task_metrics.misfits(samples, report) == []
    assert list(zip(samples["member"], samples["document"], strict=True))[:5] == [("a", n) for n in range(3)] + [
        ("b", 0),
        ("c", 0),
    ]
    changed = samples.assign(value=samples["value"].where(samples.index != 3, samples["value"] * (1 + 1e-5)))
    assert [line.split(":")[0] for line in task_metrics.misfits(changed, report)] == ["all", "b"]
    missing = samples[samples["member"] != "b"]
    lines = task_metrics.misfits(missing, report)
    assert [line.split(":")[0] for line in lines] == ["all", "b"]
    assert lines[1].endswith("of its documents, found no documents")


def test_a_metric_of_another_aggregation_is_not_recomputed():
    samples, report = report_of("mean", True, *draw("mean"))
    for entry in (report["metrics"], *report["members"].values()):
        entry["m,none"] |= {"aggregation": "f1", "value": 0.123}
    assert task_metrics.misfits(samples[:0], report) == []
    assert task_metrics.pooled(samples, report, "all", "m,none") is None
    assert task_metrics.recompute(samples, report, "all", "m,none") is None


def test_the_table_has_one_order_and_types():
    rows = [{"member": "t", "document": n, "metric": "m,none", "value": True, "weight": 1} for n in (10, 9)]
    table = task_metrics.table(rows)
    assert table["document"].tolist() == [9, 10]
    assert (
        table.dtypes.astype(str).to_dict()
        == pd.Series(
            {"member": "str", "document": "int64", "metric": "str", "value": "float64", "weight": "float64"}
        ).to_dict()
    )
    assert list(task_metrics.table([])) == task_metrics.COLUMNS
