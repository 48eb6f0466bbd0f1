"""MMLU as this workflow keeps it: one parquet file a split, columns question, subject, choices, answer."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from int4_qat import mmlu
from int4_qat.errors import InputError

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


def check_questions(folder: Path, num_fewshot: int) -> dict[str, int]:
    """Return the least number of questions that a subject has in each split.

    InputError unless the subjects are MMLU's, and each can be scored: it takes two test questions, the least that show
    variation, and as many in dev as there are shots.
    """
    needed = {"dev": num_fewshot, "validation": 0, "test": 2}
    least = {}
    for split in mmlu.EVALUATION_SPLITS:
        path = folder / f"{split}.parquet"
        questions = Counter(open_file(path, ["subject"]).read(["subject"])["subject"].to_pylist())
        if others := sorted(questions.keys() - set(mmlu.SUBJECTS)):
            raise InputError(f"{path}: expected MMLU's {len(mmlu.SUBJECTS)} subjects, found '{others[0]}'")
        subject = min(mmlu.SUBJECTS, key=lambda name: questions[name])
        least[split] = questions[subject]
        if least[split] < needed[split]:
            shots = f" for {num_fewshot} shots" if split == "dev" else ""
            wanted = f"{needed[split]} or more questions of '{subject}'{shots}"
            raise InputError(f"{path}: expected {wanted}, found {least[split]}")
    return least
