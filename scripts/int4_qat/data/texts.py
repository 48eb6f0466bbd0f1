"""Texts out of files: .txt as it is, a column of tables or of JSON lines, of texts or of conversations, row by row."""

import json
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from int4_qat.data import conversations, parquet_files, text_files
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError, one_line

TEXT, TABLE, LINES = ".txt", ".parquet", ".jsonl"
PATTERNS = (f"*{TEXT}", f"*{TABLE}", f"*{LINES}")  # the files that count where nobody says which
Row = Callable[[str, object], str]  # makes whole lines of a value, or raises InputError, which says where it stands


def join(folder: Path, patterns: Sequence[str], column: str, row: Row, where: str) -> str:
    """Return the text of the files of a folder that match a pattern, in the order of their names.

    `*` stands for a part of a path too, as the Hub's client takes it. Raise InputError, which calls the folder `where`,
    if no file matches or there is no text in them, and if a file is neither text nor rows with this column.
    """
    found = [Path(path) for path in sources.local_files(folder) if matches(Path(path).relative_to(folder), patterns)]
    if not found:
        raise InputError(f"{where}: expected files that match {' or '.join(patterns)}, found none")
    text = "".join(part for path in found for part in parts(path, column, row))
    if not text.strip():
        raise InputError(f"{where}: expected text in {' and '.join(patterns)}, found none")
    return text


def matches(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether a path below the source matches one of the patterns."""
    return any(fnmatchcase(str(path), pattern) for pattern in patterns)


def parts(path: Path, column: str, row: Row) -> Iterator[str]:
    """Yield the text of a file, or of each row of a table or of JSON lines."""
    files.refuse_lfs_pointer(path)
    if path.suffix == TEXT and row is text_row:
        text_files.check_encoding(path)
        yield path.read_bytes().decode("utf-8-sig")  # the ends of its lines stay as they are
    elif path.suffix == TABLE:
        for number, value in enumerate(table_values(path, column), start=1):
            yield row(f"{path}, row {number}: {column}", value)
    elif path.suffix == LINES:
        for number, value in line_values(path, column):
            yield row(f"{path}, line {number}: {column}", value)
    else:
        known = f"{TEXT}, {TABLE} or {LINES}" if row is text_row else f"{TABLE} or {LINES}"
        raise InputError(f"{path}: expected {known}, found {path.suffix or 'no suffix'}")


def table_values(path: Path, column: str) -> Iterator[object]:
    """Yield the values of a column of a table."""
    for batch in parquet_files.read_batches(path, [column]):
        yield from batch[column].to_pylist()


def line_values(path: Path, column: str) -> Iterator[tuple[int, object]]:
    """Yield the number of each line but for blank ones, and the value of a key in the object that it holds."""
    text_files.check_encoding(path)
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{path}, line {number}"
                found = json_object(where, line)
                if column not in found:
                    raise InputError(
                        f"{where}: expected the key {column}, found {one_line(', '.join(found)) or 'none':.80}"
                    )
                yield number, found[column]


def json_object(where: str, line: str) -> dict:
    """Return the object that a line holds; raise InputError if it holds another thing or is no JSON."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a JSON object, found {line.strip()!r:.50}")
    return found


def text_row(where: str, value: object) -> str:
    """Return a text with a newline at its end: wikitext's rows have theirs, and its blank rows are blank lines.

    Raise InputError if the value is no text, or none that a file can hold.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, found {value!r:.50}")
    return unicode(where, value if value.endswith("\n") else f"{value}\n")


def conversation_row(where: str, value: object) -> str:
    """Return a conversation as a line of JSON; raise InputError if the value is none, or none that a file can hold."""
    return unicode(where, conversations.line_of(where, value))


def unicode(where: str, text: str) -> str:
    """Return a text; raise InputError if it has half a character, which no file in UTF-8 can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected a text in Unicode, found {text[error.start]!r}") from None
    return text
