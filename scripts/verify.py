"""Verify a folder of results: every hash, and every number of its model card, back to the answers of the models.

Accuracies are counted again from the answers, the summary is derived again from the files of the variants, the card is
rendered again and compared letter by letter. An input outside the folder (raw data, a program) is verified if it is
there. Exit code 1, and a line for each thing that is wrong.

    python scripts/verify.py results/demo
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import model_card
import summarize
from int4_qat import errors, files, recipes
from int4_qat.errors import InputError
from record_provenance import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of a model, with provenance.json")
    results = parser.parse_args().results
    found = problems(results)
    if found:
        sys.exit("\n".join(f"{results}: {problem}" for problem in found))
    recorded = files.read_json(results / "provenance.json")
    absent = [name for name in recorded["files"] if not place(name, results, recorded).exists()]
    print(f"{len(recorded['files']) - len(absent)} files hold what was recorded, every number follows from them")
    if absent:
        print(f"not verified, since they are not here: {len(absent)} inputs, the first {absent[0]}")


def problems(results: Path) -> list[str]:
    """What is wrong, a line each."""
    recorded = files.read_json(results / "provenance.json")
    found = list(changed_files(results, recorded))
    if found:
        return found
    try:
        for check in (wrong_accuracies, wrong_numbers, wrong_card):
            found.extend(check(results, recorded))
    except InputError as error:
        found.append(str(error))
    return found


def place(name: str, results: Path, recorded: dict) -> Path:
    """Where a recorded file is: a result in this folder, a program in this workflow, all else beside the results."""
    own = f"results/{recorded['settings']['model']}/"
    if name.startswith(own):
        return results / name.removeprefix(own)
    return ROOT / name if name.startswith("scripts/") else results.resolve().parents[1] / name


def changed_files(results: Path, recorded: dict) -> Iterator[str]:
    """Files that are missing, or hold something else than was recorded."""
    for name, wanted in recorded["files"].items():
        path = place(name, results, recorded)
        if path.exists():
            if files.sha256(path.resolve()) != wanted:
                yield f"{name}: not the file that was recorded"
        elif path.is_relative_to(results):
            yield f"{name}: expected a file, found none"


def wrong_accuracies(results: Path, recorded: dict) -> Iterator[str]:
    """Scores that are not what the answers give."""
    for name in recorded["settings"]["variants"]:
        measured = summarize.read_variant(results / name, tasks={}, charted=False)
        answers, score = measured["answers"], measured["mmlu"]
        best = answers.filter(like="log_likelihood_").to_numpy().argmax(axis=1)
        right = best == answers["answer"]
        if (right != answers["correct"]).any() or not math.isclose(right.mean(), score["accuracy"], rel_tol=1e-9):
            yield f"{name}: its answers give an accuracy of {right.mean()}, mmlu.json says {score['accuracy']}"


def wrong_numbers(results: Path, recorded: dict) -> Iterator[str]:
    """Numbers of the summary that do not follow from the files."""
    settings = recorded["settings"]
    summary = files.read_json(results / "summary.json")
    derived = summarize.derive(
        results, settings["variants"], settings["arms"], recipes.metrics_of(settings), recipes.charted(settings)
    )
    for key, value in derived.items():
        for where, found, expected in differences(summary[key], value, key):
            yield f"summary.json: {where} is {found}, the files give {expected}"


def wrong_card(results: Path, recorded: dict) -> Iterator[str]:
    """The first line of the card that is not what the figures give."""
    path = results / "model_card.md"
    if not path.exists():
        yield f"{path.name}: expected a model card, found none"
        return
    wanted = model_card.render(results, recorded["settings"]).splitlines()
    found = path.read_text(encoding="utf-8").splitlines()
    for number, (line, expected) in enumerate(zip(found, wanted, strict=False), start=1):
        if line != expected:
            yield f"{path.name}, line {number}: says '{line}', the figures give '{expected}'"
            return
    if len(found) != len(wanted):
        yield f"{path.name}: expected {len(wanted)} lines, found {len(found)}"


def differences(found: object, expected: object, where: str) -> Iterator[tuple[str, object, object]]:
    """Key by key, what differs; numbers may differ in their last digits, as other processors round otherwise."""
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


if __name__ == "__main__":
    errors.run(main)
