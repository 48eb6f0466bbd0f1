"""Locate and read the files of measurements in the folder of a variant."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from int4_qat.data import parquet_files
from int4_qat.results.measurements import Measurement
from int4_qat.results.schema.task import Task
from int4_qat.system import files
from int4_qat.system.errors import InputError


def paths(measured: Mapping[str, list[Measurement]]) -> list[str]:
    """Return the files of the variants' measurements, tables of samples included, relative to the model's folder."""
    every = [(variant, one) for variant, found in measured.items() for one in found]
    return [f"{variant}/{file}" for variant, one in every for file in files_of(one)]


def files_of(measurement: Measurement) -> list[str]:
    """Return the files of a measurement, relative to the folder of a variant."""
    return [measurement.file, *([measurement.samples.file] if measurement.samples else [])]


def read(folder: Path, measurement: Measurement) -> dict:
    """Return a measurement from the folder of a variant; raise InputError if its file or a key is missing."""
    path = folder / measurement.file
    content = files.read_json(path)
    for key in sorted(measurement.schema.__required_keys__ - content.keys()):
        raise InputError(f"{path}: expected the key {key}, found {', '.join(content)}")
    return content if measurement.metric is None else content | that_counts(path, content, measurement.metric)


def that_counts(path: Path, content: Task, metric: str) -> dict:
    """Return the chosen metric of a task; raise InputError if lm-eval reports no metric of that name."""
    known = content["metrics"]
    if metric not in known:
        raise InputError(f"evaluation.tasks: {path}: expected a metric {' or '.join(known)}, found '{metric}'")
    return {"metric": metric} | known[metric]


def read_samples(folder: Path, measurement: Measurement) -> pd.DataFrame:
    """Return a measurement's table of samples from the folder of a variant, indexed by unit, in the order of the file.

    Raise InputError if the table or one of its columns is missing.
    """
    samples = measurement.samples
    table = parquet_files.open_file(folder / samples.file, [*samples.key, *samples.columns]).read().to_pandas()
    return table.set_index(samples.key)


def part(row: dict, measurement: Measurement) -> dict | None:
    """Return what a row of the summary holds for a measurement, or None if the variant does not have it."""
    return (row[measurement.group] if measurement.group else row).get(measurement.name)
