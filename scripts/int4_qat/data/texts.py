"""Running text out of files: .txt as it is, a column of tables row by row."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from int4_qat.data import parquet_files, text_files
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError

TEXT, TABLE = ".txt", ".parquet"
PATTERNS = (f"*{TEXT}", f"*{TABLE}")  # the files that count where nobody says which


def join(folder: Path, patterns: Sequence[str], column: str, where: str) -> str:
    """Return the text of the files of a folder that match a pattern, in the order of their names.

    `*` stands for a part of a path too, as the Hub's client takes it. A row of a table that does not end with a newline
    gets one; wikitext's do, and its blank rows are blank lines. Raise InputError, which calls the folder `where`, if no
    file matches or there is no text in them, and if a file is neither text nor a table with this column of texts.
    """
    found = [Path(path) for path in sources.local_files(folder) if matches(Path(path).relative_to(folder), patterns)]
    if not found:
        raise InputError(f"{where}: expected files that match {' or '.join(patterns)}, found none")
    text = "".join(part for path in found for part in parts(path, column))
    if not text.strip():
        raise InputError(f"{where}: expected text in {' and '.join(patterns)}, found none")
    return text


def matches(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether a path below the source matches one of the patterns."""
    return any(fnmatchcase(str(path), pattern) for pattern in patterns)


def parts(path: Path, column: str) -> Iterator[str]:
    """Yield the text of a file, or of each row of a table."""
    files.refuse_lfs_pointer(path)
    if path.suffix == TEXT:
        text_files.check_encoding(path)
        yield path.read_bytes().decode("utf-8-sig")  # the ends of its lines stay as they are
    elif path.suffix == TABLE:
        yield from rows(path, column)
    else:
        raise InputError(f"{path}: expected {TEXT} or {TABLE}, found {path.suffix or 'no suffix'}")


def rows(path: Path, column: str) -> Iterator[str]:
    """Yield the texts of a column, each with a newline at its end."""
    number = 0
    for batch in parquet_files.read_batches(path, [column]):
        for value in batch[column].to_pylist():
            number += 1
            if not isinstance(value, str):
                raise InputError(f"{path}, row {number}: {column}: expected a text, found {value!r:.50}")
            yield value if value.endswith("\n") else f"{value}\n"
