"""Count the test questions that also stand in the training texts.

Exactly, and normalized (letters and digits alone, in lower case): by the question, and by the question with its
choices in any order. The recipe trains on MMLU's auxiliary_train and is scored on MMLU's test.

    python scripts/check_contamination.py --train resources/mmlu/auxiliary_train.parquet \\
        --test resources/mmlu/test.parquet --output resources/contamination.json
"""

import argparse
import re
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

from tqdm import tqdm

from int4_qat.data import mmlu_parquet
from int4_qat.system import errors, files

NOT_WORDS = re.compile(r"[\W_]+")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, type=Path, help="parquet of the training split")
    parser.add_argument("--test", required=True, type=Path, help="parquet of the test split")
    parser.add_argument("--output", required=True, type=Path, help="JSON with the counts")
    arguments = parser.parse_args()
    counts = count(arguments.train, arguments.test)
    files.write_json(arguments.output, counts)
    print(f"{counts['exact']} of {counts['questions']} test questions stand in the training texts")


def normalized(text: str) -> str:
    return NOT_WORDS.sub(" ", text).strip().lower()


KEYS: dict[str, Callable[[dict], Hashable]] = {
    "exact": lambda row: row["question"],
    "normalized": lambda row: normalized(row["question"]),
    "exact_with_choices": lambda row: (row["question"], *sorted(row["choices"])),
    "normalized_with_choices": lambda row: (normalized(row["question"]), *sorted(map(normalized, row["choices"]))),
}


def count(train: Path, test: Path) -> dict[str, int]:
    """Test questions, and how many of them are found among the training questions in each of the KEYS' senses."""
    questions = list(rows(test))
    found: dict[str, set[Hashable]] = {name: set() for name in KEYS}
    wanted = {name: {key(row) for row in questions} for name, key in KEYS.items()}
    for row in tqdm(rows(train), desc="training texts", unit=" rows", mininterval=1):
        for name, key in KEYS.items():
            if (value := key(row)) in wanted[name]:
                found[name].add(value)
    counts = {name: sum(key(row) in found[name] for row in questions) for name, key in KEYS.items()}
    return {"questions": len(questions), **counts}


def rows(path: Path) -> Iterator[dict]:
    for batch in mmlu_parquet.read_batches(path, ["question", "choices"]):
        yield from batch.to_pylist()


if __name__ == "__main__":
    errors.run(main)
