"""Count the test questions that also stand in the training texts.

Exactly, and normalized (letters and digits alone, in lower case): by the question, and by the question with its
choices in any order. The recipe trains on MMLU's auxiliary_train and is scored on MMLU's test, and on any other
questions that are named here: the training texts are read once for all.

    python scripts/check_contamination.py --train resources/mmlu/auxiliary_train.parquet \\
        --test mmlu=resources/mmlu/test.parquet mine=resources/questions/mine/test.parquet \\
        --output resources/contamination.json
"""

import argparse
import re
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

from tqdm import tqdm

from int4_qat.data import parquet_files
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError

NOT_WORDS = re.compile(r"[\W_]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, type=Path, help="parquet of the training split")
    parser.add_argument("--test", required=True, nargs="*", metavar="NAME=PATH", help="parquets of test splits")
    parser.add_argument("--output", required=True, type=Path, help="JSON with the counts")
    arguments = parser.parse_args()
    found = count(arguments.train, dict(map(named, arguments.test)))
    files.write_json(arguments.output, found)
    for name, counted in found.items():
        print(f"{name}: {counted['exact']} of {counted['questions']} test questions stand in the training texts")


def named(test: str) -> tuple[str, Path]:
    """Return the name and the file of a test split; raise InputError if there is no name."""
    name, separator, path = test.partition("=")
    if not (name and separator and path):
        raise InputError(f"--test: expected <name>=<path of a parquet>, found '{test}'")
    return name, Path(path)


def normalized(text: str) -> str:
    return NOT_WORDS.sub(" ", text).strip().lower()


KEYS: dict[str, Callable[[dict], Hashable]] = {
    "exact": lambda row: row["question"],
    "normalized": lambda row: normalized(row["question"]),
    "exact_with_choices": lambda row: (row["question"], *sorted(row["choices"])),
    "normalized_with_choices": lambda row: (normalized(row["question"]), *sorted(map(normalized, row["choices"]))),
}


def count(train: Path, tests: dict[str, Path]) -> dict[str, dict[str, int]]:
    """Return of each test its questions, and how many are among the training questions in each of the KEYS' senses."""
    questions = {name: list(rows(path)) for name, path in tests.items()}
    found: dict[str, set[Hashable]] = {name: set() for name in KEYS}
    wanted = {name: {key(row) for asked in questions.values() for row in asked} for name, key in KEYS.items()}
    for row in tqdm(rows(train), desc="training texts", unit=" rows", mininterval=1):
        for name, key in KEYS.items():
            if (value := key(row)) in wanted[name]:
                found[name].add(value)
    return {test: {"questions": len(asked), **counts(asked, found)} for test, asked in questions.items()}


def counts(questions: list[dict], found: dict[str, set[Hashable]]) -> dict[str, int]:
    """Return how many of some questions are among those that were found, in each of the KEYS' senses."""
    return {name: sum(key(row) in found[name] for row in questions) for name, key in KEYS.items()}


def rows(path: Path) -> Iterator[dict]:
    for batch in parquet_files.read_batches(path, ["question", "choices"]):
        yield from batch.to_pylist()


if __name__ == "__main__":
    errors.run(main)
