"""Count the test questions that also occur in the training texts.

Questions are compared exactly and normalized (letters and digits only, in lower case), both by the question alone and
by the question with its choices in any order. The recipe trains on MMLU's auxiliary_train and is scored on MMLU's test
split, and on any other questions that are named here; the training texts are read once for all of them. In general
texts, on which a run trains or calibrates, a question counts if 13 of its words occur there in a row, or all of them if
it is shorter (data/shared_words.py).

    python scripts/check_contamination.py --train resources/mmlu_train/auxiliary_train.parquet \\
        --test mmlu=resources/mmlu/test.parquet mine=resources/questions/mine/test.parquet \\
        --output resources/contamination.json
"""

import argparse
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

from tqdm import tqdm

from int4_qat.data import named_files, parquet_files, shared_words
from int4_qat.data.shared_words import normalized
from int4_qat.system import errors, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, type=Path, help="parquet file with the training questions")
    parser.add_argument("--test", required=True, nargs="*", metavar="NAME=PATH", help="test questions, as parquet")
    parser.add_argument("--texts", nargs="*", default=[], metavar="NAME=PATH", help="texts to train or calibrate on")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    tests = named_files.parse("--test", arguments.test, "parquet")
    in_texts = count_in_texts(tests, named_files.parse("--texts", arguments.texts, "text"))
    found = {name: counted | {"in_texts": in_texts[name]} for name, counted in count(arguments.train, tests).items()}
    files.write_json(arguments.output, found)
    for name, counted in found.items():
        print(f"{name}: {counted['exact']} of {counted['questions']} test questions occur among the training questions")
        for text, standing in counted["in_texts"].items():
            print(f"{name}: {standing} of {counted['questions']} test questions occur in {text}")


KEYS: dict[str, Callable[[dict], Hashable]] = {
    "exact": lambda row: row["question"],
    "normalized": lambda row: normalized(row["question"]),
    "exact_with_choices": lambda row: (row["question"], *sorted(row["choices"])),
    "normalized_with_choices": lambda row: (normalized(row["question"]), *sorted(map(normalized, row["choices"]))),
}


def count(train: Path, tests: dict[str, Path]) -> dict[str, dict[str, int]]:
    """Return, for each test, its number of questions, and how many are among the training questions by each of KEYS."""
    questions = {name: list(rows(path)) for name, path in tests.items()}
    found: dict[str, set[Hashable]] = {name: set() for name in KEYS}
    wanted = {name: {key(row) for asked in questions.values() for row in asked} for name, key in KEYS.items()}
    for row in tqdm(rows(train), desc="training texts", unit=" rows", mininterval=1):
        for name, key in KEYS.items():
            if (value := key(row)) in wanted[name]:
                found[name].add(value)
    return {test: {"questions": len(asked), **counts(asked, found)} for test, asked in questions.items()}


def counts(questions: list[dict], found: dict[str, set[Hashable]]) -> dict[str, int]:
    """Return how many of the questions are among those that were found, by each of KEYS."""
    return {name: sum(key(row) in found[name] for row in questions) for name, key in KEYS.items()}


def count_in_texts(tests: dict[str, Path], texts: dict[str, Path]) -> dict[str, dict[str, int]]:
    """Return, for each test, how many of its questions share a sequence of words with each text."""
    runs = {
        name: [shared_words.runs_of_question(row["question"], row["choices"]) for row in rows(path)]
        for name, path in tests.items()
    }
    wanted = {run for asked in runs.values() for question in asked for run in question}
    found = {text: shared_words.found(wanted, shared_words.parts_of(path)) for text, path in texts.items()}
    return {
        name: {text: sum(not question.isdisjoint(standing) for question in asked) for text, standing in found.items()}
        for name, asked in runs.items()
    }


def rows(path: Path) -> Iterator[dict]:
    for batch in parquet_files.read_batches(path, ["question", "choices"]):
        yield from batch.to_pylist()


if __name__ == "__main__":
    errors.run(main)
