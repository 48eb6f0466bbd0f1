"""Define and check how this workflow stores MMLU.

There is one parquet file per split, with the columns question, subject, choices and answer.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa

from int4_qat.data import mmlu, parquet_files
from int4_qat.system.errors import InputError

SCHEMA = pa.schema(
    [
        pa.field("question", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.int64(), nullable=False),
    ]
)


def count_subjects(path: Path) -> Counter[str]:
    """Return the number of questions that a split has of each subject."""
    return Counter(parquet_files.open_file(path, ["subject"]).read(["subject"])["subject"].to_pylist())


def check_questions(where: str | Path, questions: dict[str, Counter[str]], num_fewshot: int) -> None:
    """Raise InputError unless each of MMLU's subjects, and no other, can be scored with `num_fewshot` examples."""
    for split in mmlu.EVALUATION_SPLITS:
        if others := sorted(questions[split].keys() - set(mmlu.SUBJECTS)):
            raise InputError(f"{where}: {split}: expected MMLU's {len(mmlu.SUBJECTS)} subjects, found '{others[0]}'")
    check_subjects(where, questions, mmlu.SUBJECTS, num_fewshot)


def check_subjects(
    where: str | Path, questions: dict[str, Counter[str]], subjects: Collection[str], num_fewshot: int
) -> None:
    """Raise InputError unless each of the subjects can be scored with `num_fewshot` examples.

    Each subject needs that many dev questions, and two test questions, the fewest that show variation.
    """
    needed = {"dev": num_fewshot, "test": 2}
    for split, count in needed.items():
        counted = questions.get(split, Counter())
        subject = fewest(counted, subjects)
        if (found := counted[subject]) < count:
            reason = f", the examples of num_fewshot {num_fewshot}" if split == "dev" else ""
            raise InputError(
                f"{where}: {split}: expected {count} or more questions of '{subject}'{reason}, found {found}"
            )


def fewest(questions: Counter[str], subjects: Collection[str]) -> str:
    """Return the subject that has the fewest questions."""
    return min(subjects, key=lambda subject: questions[subject])
