"""Read texts from files: .txt files as they are, tables and JSON lines row by row.

The rows have a column of texts or of conversations.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from int4_qat.data import conversations, parquet_files, text_files
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError, one_line

TEXT, TABLE, LINES = ".txt", ".parquet", ".jsonl"
PATTERNS = (f"*{TEXT}", f"*{TABLE}", f"*{LINES}")  # the files that count by default
Row = Callable[[str, object], str]  # turns a value into whole lines, or raises InputError, which says where it is


def join(folder: Path, patterns: Sequence[str], column: str, row: Row, where: str) -> str:
    """Return the text of the files in a folder that match a pattern, in the order of their names.

    `*` also matches across folders, as in the Hub's client. Raise InputError, which calls the folder `where`, if no
    file matches, if the files have no text, or if a file is neither text nor rows with this column.
    """
    found = [Path(path) for path in sources.local_files(folder) if matches(Path(path).relative_to(folder), patterns)]
    if not found:
        raise InputError(f"{where}: expected files that match {' or '.join(patterns)}, found none")
    *others, last = ("".join(parts(path, column, row)) for path in found)
    text = "".join([*map(_ended, others), last])
    if not text.strip():
        raise InputError(f"{where}: expected text in {' and '.join(patterns)}, found none")
    return text


def _ended(text: str) -> str:
    """Return the text of a file with the end of its last line, so that no word runs into the next file."""
    return text if not text or text.endswith("\n") else f"{text}\n"


def matches(path: Path, patterns: Sequence[str]) -> bool:
    """Return whether a path below the source matches one of the patterns."""
    return any(fnmatchcase(str(path), pattern) for pattern in patterns)


def parts(path: Path, column: str, row: Row) -> Iterator[str]:
    """Yield the text of a file, or of each row of a table or of JSON lines."""
    files.refuse_lfs_pointer(path)
    if path.suffix == TEXT and row is text_row:
        text_files.check_encoding(path)
        yield path.read_bytes().decode("utf-8-sig")  # line endings are kept
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
    """Yield the number of each line that is not blank, and the value of a key in the JSON object on it."""
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
    """Return the JSON object on a line; raise InputError if the line is not JSON or not an object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON ({one_line(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected a JSON object, found {line.strip()!r:.50}")
    return found


def text_row(where: str, value: object) -> str:
    """Return a text with a newline at its end: wikitext's rows already have one, and its blank rows are blank lines.

    Raise InputError if the value is not a text, or cannot be written to a file in UTF-8.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, found {value!r:.50}")
    return unicode(where, value if value.endswith("\n") else f"{value}\n")


def conversation_row(where: str, value: object) -> str:
    """Return a conversation as a line of JSON.

    Raise InputError if the value is not a conversation, or cannot be written to a file in UTF-8.
    """
    return unicode(where, conversations.line_of(where, value))


def unicode(where: str, text: str) -> str:
    """Return a text; raise InputError if it has a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: expected valid Unicode, found {text[error.start]!r}") from None
    return text
