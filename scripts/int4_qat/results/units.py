"""Read the variants' tables of units (questions, documents, windows) and compute their metrics."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from int4_qat.results import measured_files, metrics, statistics
from int4_qat.results.measurements import Measurement
from int4_qat.results.metrics import Metric, Scores
from int4_qat.system.errors import InputError

Measured = Mapping[str, list[Measurement]]  # by variant
Found = Mapping[str, Mapping[str, dict]]  # content of the files, by variant and name of the measurement
ROUNDING = {"rel_tol": 1e-6, "abs_tol": 1e-9}  # tolerance for a figure that is summed in another order


class Asked(NamedTuple):
    """A measurement that has a table of units, and one of the metrics that the units give."""

    measurement: Measurement
    tables: dict[str, pd.DataFrame]  # of the units, by variant
    metric: Metric
    scores: Scores
    calibrated: str | None = None  # the calibrated base that is best by this metric, if there is one


def read(results: Path, measured: Measured, found: Found, calibrated: Iterable[str]) -> Iterator[Asked]:
    """Yield each metric that the tables of units give; calibrated names the calibrated bases.

    Raise InputError if two variants were asked different units, or if a table and its measurement's file give different
    figures.
    """
    for one in {one.name: one for name in measured for one in measured[name] if one.samples}.values():
        names = [name for name in measured if one in measured[name]]
        tables = {name: measured_files.read_samples(results / name, one) for name in names}
        check_same_units(one, tables)
        of_one = one.samples.metrics(one.name, tables, found[names[0]][one.name])
        every = [ask(one, tables, metric, calibrated) for metric in of_one]
        for name in names if every else ():
            check_reported(results / name, one, name, every, found[name][one.name])
        yield from every


def ask(measurement: Measurement, tables: dict[str, pd.DataFrame], metric: Metric, calibrated: Iterable[str]) -> Asked:
    """Return a metric with its scores and the calibrated base that is best by it."""
    scores = metrics.scores(metric)
    return Asked(measurement, tables, metric, scores, metrics.best(scores, calibrated))


def check_same_units(measurement: Measurement, tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise InputError if the variants were not asked the same units."""
    first = next(iter(tables))
    for name, table in tables.items():
        if not table.index.equals(tables[first].index):
            raise InputError(
                f"{name}: expected the questions of {measurement.name} that {first} was asked, found others"
            )


def check_reported(folder: Path, measurement: Measurement, name: str, every: list[Asked], content: dict) -> None:
    """Raise InputError if a measurement's file and its table give different figures."""
    for each, figure in zip(every, measurement.samples.reported(content), strict=True):
        given = metrics.value_of(each.metric, each.scores.plain[name])
        if not math.isclose(given, figure, **ROUNDING):
            said = f"expected {figure}, as in {measurement.file}"
            raise InputError(f"{folder / measurement.samples.file}: {each.metric.name}: {said}, found {given}")


def interval(asked: Asked, name: str) -> list[float] | None:
    """Return the interval of a variant's value; for answers it is Wilson's, which has a width at 0% and 100% too."""
    if asked.measurement.samples.of_choices:
        correct = asked.tables[name]["correct"]
        return statistics.wilson(correct.sum(), len(correct))
    return metrics.interval_of(asked.metric, asked.scores.resampled[name])
