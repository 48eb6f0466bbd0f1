"""Running text out of files: .txt as it is, a column of tables row by row."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from int4_qat.data import mmlu_parquet, text_files
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError

TEXT, TABLE = ".txt", ".parquet"


def join(folder: Path, pattern: str, column: str) -> str:
    """Return the text of the files of a folder that match a pattern, in the order of their names.

    Rows of a table that do not end with a newline get one. Raise InputError if no file matches, if one is neither text
    nor a table with this column of texts, or if there is no text in them.
    """
    listed = {Path(path) for path in sources.local_files(folder)}
    found = sorted(path for path in folder.glob(pattern) if path in listed)
    if not found:
        raise InputError(f"{folder}: expected files that match {pattern}, found none")
    text = "".join(part for path in found for part in parts(path, column))
    if not text.strip():
        raise InputError(f"{folder}: expected text in {pattern}, found none")
    return text


def parts(path: Path, column: str) -> Iterator[str]:
    """Yield the text of a file, or of each row of a table."""
    files.refuse_lfs_pointer(path)
    if path.suffix == TEXT:
        text_files.check_encoding(path)
        yield path.read_text(encoding="utf-8-sig")
    elif path.suffix == TABLE:
        yield from rows(path, column)
    else:
        raise InputError(f"{path}: expected {TEXT} or {TABLE}, found {path.suffix or 'no suffix'}")


def rows(path: Path, column: str) -> Iterator[str]:
    """Yield the texts of a column."""
    table: pq.ParquetFile = mmlu_parquet.open_file(path, [column])
    number = 0
    for batch in table.iter_batches(columns=[column]):
        for value in batch[column].to_pylist():
            number += 1
            if not isinstance(value, str):
                raise InputError(f"{path}, row {number}: {column}: expected a text, found {value!r:.50}")
            yield value if value.endswith("\n") else f"{value}\n"
