"""Make sure that text files are UTF-8, whatever editor or spreadsheet wrote them."""

import codecs
from pathlib import Path

from int4_qat.system.errors import InputError


def check_encoding(path: Path) -> None:
    """Raise InputError, which names the line, unless a file is UTF-8."""
    with path.open("rb") as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(f"{path}: expected UTF-8, found UTF-16; save it as UTF-8")
        stream.seek(0)
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = error.object[error.start : error.start + 1]
                raise InputError(f"{path}, line {number}: expected UTF-8, found {found!r}") from None


def remove_byte_order_mark(path: Path) -> None:
    """Remove the byte order mark at the start of a file, if it has one; a link is replaced by a copy without it."""
    with path.open("rb") as stream:
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            return
        content = stream.read()
    path.unlink()
    path.write_bytes(content)
