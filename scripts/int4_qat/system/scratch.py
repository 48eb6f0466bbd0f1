"""Make scratch folders whose paths no library misreads.

`datasets` takes `*`, `?` and brackets in any path for a pattern and `::` for a chain of addresses. lmms-eval splits its
arguments at commas and equals signs, and Python splits PYTHONPATH at colons. None of them can be told not to, so the
files that they are given are in such a folder or linked from one.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from int4_qat.system import signals
from int4_qat.system.errors import InputError

PLAIN = re.compile(r"[\w/ .+@~#%-]*")
USUAL = ("/tmp", "/var/tmp")  # used if TMPDIR is not plain


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder that is deleted after the block: in TMPDIR or, with a printed notice, in another usual place.

    SIGINT and SIGTERM end the block too.
    """
    with signals.unwound(), tempfile.TemporaryDirectory(dir=place()) as name:
        yield Path(name)


@contextmanager
def plain(path: Path) -> Iterator[Path]:
    """Yield the path of a file or folder if no library misreads it, otherwise the path of a link to it."""
    if PLAIN.fullmatch(str(path.resolve())):
        yield path
        return
    with folder() as links:
        (links / "link").symlink_to(path.resolve())
        yield links / "link"


def place() -> str:
    """Return the folder in which scratch folders are made; raise InputError if there is none."""
    chosen = tempfile.gettempdir()
    for usual in (chosen, *USUAL):
        if PLAIN.fullmatch(str(Path(usual).resolve())) and _is_writable(usual):
            if usual != chosen:
                print(f"TMPDIR: scratch files go to {usual}, since a library would misread {chosen!r}", flush=True)
            return usual
    raise InputError(f"TMPDIR: expected a folder without *, ?, brackets, quotes, commas or the like, found {chosen!r}")


def _is_writable(usual: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=usual):
            return True
    except OSError:
        return False
