"""MMLU as this workflow keeps it: one parquet file a split, columns question, subject, choices, answer."""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from int4_qat.data import mmlu
from int4_qat.system.errors import InputError

SCHEMA = pa.schema(
    [
        pa.field("question", pa.string(), nullable=False),
        pa.field("subject", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.int64(), nullable=False),
    ]
)


def read_batches(path: Path | str, columns: list[str], batch_rows: int = 8192) -> Iterator[pa.RecordBatch]:
    """Stream a parquet file; InputError if it is truncated or lacks a column."""
    with open_file(path, columns) as file:
        yield from file.iter_batches(batch_rows, columns=columns)


def open_file(path: Path | str, columns: list[str]) -> pq.ParquetFile:
    """Open a parquet file that must hold these columns; InputError names the file and what is wrong."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a whole parquet file ({error})") from None
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise InputError(f"{path}: expected the columns {', '.join(columns)}; {', '.join(missing)} missing")
    return file


def count_subjects(path: Path) -> Counter[str]:
    """Return how many questions of each subject a split has."""
    return Counter(open_file(path, ["subject"]).read(["subject"])["subject"].to_pylist())


def check_questions(where: str | Path, questions: dict[str, Counter[str]], num_fewshot: int) -> None:
    """Raise InputError unless each of MMLU's subjects, and no other, can be scored with `num_fewshot` examples."""
    for split in mmlu.EVALUATION_SPLITS:
        if others := sorted(questions[split].keys() - set(mmlu.SUBJECTS)):
            raise InputError(f"{where}: {split}: expected MMLU's {len(mmlu.SUBJECTS)} subjects, found '{others[0]}'")
    check_subjects(where, questions, mmlu.SUBJECTS, num_fewshot)


def check_subjects(
    where: str | Path, questions: dict[str, Counter[str]], subjects: Collection[str], num_fewshot: int
) -> None:
    """Raise InputError unless each of some subjects can be scored with `num_fewshot` examples.

    It takes two test questions, the least that show variation.
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
    """Return which of some subjects has the fewest questions."""
    return min(subjects, key=lambda subject: questions[subject])
