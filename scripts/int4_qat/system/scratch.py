"""Folders for what a program throws away, by names that no library misreads.

`datasets` takes `*`, `?` and brackets in any path for a pattern and `::` for a chain of addresses, lmms-eval splits its
arguments at commas and equals signs, Python its PYTHONPATH at colons, and none can be told not to. So what they are
given lies, or is linked, here.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from int4_qat.system.errors import InputError

PLAIN = re.compile(r"[\w/ .+@~#%-]*")
USUAL = ("/tmp", "/var/tmp")  # where TMPDIR is not plain


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone after the block: in TMPDIR, or else, which it says, in another usual place."""
    with tempfile.TemporaryDirectory(dir=place()) as name:
        yield Path(name)


@contextmanager
def plain(path: Path) -> Iterator[Path]:
    """A file's or folder's own path, or that of a link to it."""
    if PLAIN.fullmatch(str(path.resolve())):
        yield path
        return
    with folder() as links:
        (links / "link").symlink_to(path.resolve())
        yield links / "link"


def place() -> str:
    """Where such folders lie."""
    chosen = tempfile.gettempdir()
    for usual in (chosen, *USUAL):
        if PLAIN.fullmatch(str(Path(usual).resolve())) and _is_writable(usual):
            if usual != chosen:
                print(f"TMPDIR: a library would misread {chosen!r}; scratch files go to {usual}", flush=True)
            return usual
    raise InputError(f"TMPDIR: expected a folder without *, ?, brackets, quotes, commas and the like, found {chosen!r}")


def _is_writable(usual: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=usual):
            return True
    except OSError:
        return False
