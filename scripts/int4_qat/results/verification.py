"""Verify that a folder of results is what its provenance says: every hash, and every number back to the answers.

Accuracies are recounted from the models' answers, the summary is rederived from the files of the variants, and the card
is re-rendered and compared character by character.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from int4_qat.config import metric_names, quantizations
from int4_qat.results import (
    calibrated_bases,
    card,
    chartqa_figures,
    measured_files,
    measurements,
    statistics,
    summary,
    task_metrics,
)
from int4_qat.results.schema.chartqa import ChartQA
from int4_qat.results.schema.task import Task
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError

PARTS = {Task: task_metrics.misfits, ChartQA: chartqa_figures.misfits}
ROOT = sources.PACKAGE.parents[1]  # of the workflow


def problems(results: Path) -> list[str]:
    """Return one line for each thing that is wrong."""
    recorded = files.read_json(results / "provenance.json")
    found = list(changed_files(results, recorded))
    if found:
        return found
    try:
        for check in (wrong_accuracies, wrong_parts, wrong_numbers, wrong_card):
            found.extend(check(results, recorded["settings"]))
    except InputError as error:
        found.append(str(error))
    return found


def place(name: str, results: Path, recorded: dict) -> Path:
    """Return the path of a recorded file.

    A result is in this folder and a program in this workflow; any other file is relative to the folder two levels up.
    """
    own = f"results/{recorded['settings']['model']}/"
    if name.startswith(own):
        return results / name.removeprefix(own)
    return ROOT / name if name.startswith("scripts/") else results.resolve().parents[1] / name


def changed_files(results: Path, recorded: dict) -> Iterator[str]:
    """Yield a line for each file that differs from what was recorded, and for each result that is missing."""
    for name, wanted in recorded["files"].items():
        path = place(name, results, recorded)
        if path.exists():
            if files.sha256(path.resolve()) != wanted:
                yield f"{name}: expected the recorded file, found another"
        elif path.is_relative_to(results):
            yield f"{name}: expected a file, found none"


def wrong_accuracies(results: Path, settings: dict) -> Iterator[str]:
    """Yield a line for each score that the answers do not give."""
    for name, found in measurements.asked(settings).items():
        for one in (one for one in found if one.samples and one.samples.of_choices):
            answers, score = measured_files.read_samples(results / name, one), measured_files.read(results / name, one)
            right = statistics.log_likelihoods(answers).argmax(axis=1) == answers["answer"]
            if (right != answers["correct"]).any() or not math.isclose(right.mean(), score["accuracy"], rel_tol=1e-9):
                yield f"{name}/{one.file}: expected accuracy {right.mean()} from the answers, found {score['accuracy']}"


def wrong_parts(results: Path, settings: dict) -> Iterator[str]:
    """Yield a line for each figure of tasks and charts, or of their parts, that single answers do not give."""
    for name, found in measurements.asked(settings).items():
        for one in found:
            if one.schema in PARTS:
                samples = measured_files.read_samples(results / name, one).reset_index()
                for line in PARTS[one.schema](samples, measured_files.read(results / name, one)):
                    yield f"{name}/{one.file}: {line}"


def wrong_numbers(results: Path, settings: dict) -> Iterator[str]:
    """Yield a line for each number of the summary that does not follow from the files."""
    written = files.read_json(results / "summary.json")
    measured = measurements.summarized(measurements.asked(settings))
    headline, arms = metric_names.headline(settings["evaluation"]), settings["arms"]
    references, calibrated = quantizations.references(settings), calibrated_bases.bases(settings)
    derived = summary.derive(
        results, measured, arms, references, calibrated, headline, measurements.not_served(settings)
    )
    for key, value in derived.items():
        for where, found, expected in differences(written[key], value, key):
            yield f"summary.json: {where}: expected {expected} from the files, found {found}"


def wrong_card(results: Path, settings: dict) -> Iterator[str]:
    """Yield a message for the first line of the card that differs from what the figures give."""
    path = results / "model_card.md"
    if not path.exists():
        yield f"{path.name}: expected a model card, found none"
        return
    wanted = card.render(results, settings).splitlines()
    found = path.read_text(encoding="utf-8").splitlines()
    for number, (line, expected) in enumerate(zip(found, wanted, strict=False), start=1):
        if line != expected:
            yield f"{path.name}, line {number}: expected '{expected}' from the figures, found '{line}'"
            return
    if len(found) != len(wanted):
        yield f"{path.name}: expected {len(wanted)} lines, found {len(found)}"


def differences(found: object, expected: object, where: str) -> Iterator[tuple[str, object, object]]:
    """Yield each key that differs, with both values.

    Floats may differ in their last digits, since processors round differently.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            yield from differences(found.get(key), expected.get(key), f"{where}.{key}")
    elif isinstance(found, list) and isinstance(expected, list | tuple) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif isinstance(found, float) and isinstance(expected, float):
        if not math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12):
            yield where, found, expected
    elif found != expected:
        yield where, found, expected
