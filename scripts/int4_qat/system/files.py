"""Outputs are whole or absent: everything is written beside its place and renamed into it."""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from int4_qat.system.errors import InputError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # what every pointer begins with


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder to; it takes its place only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    remove(unfinished)
    try:
        yield unfinished
        remove(path)
        unfinished.rename(path)
    finally:
        remove(unfinished)


def link(source: Path, folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Make a folder of links to files below another, each in the place that it has there: all of them, or those given.

    A link to the folder itself would be followed by `datasets`.
    """
    folder.mkdir(parents=True)
    for path in source.rglob("*") if paths is None else paths:
        if path.is_file():
            place = folder / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one; of a link the link alone. No folder is there by half."""
    if path.is_dir() and not path.is_symlink():
        going = path.with_name(f".{path.name}.removed")
        shutil.rmtree(going, ignore_errors=True)
        shutil.rmtree(path.rename(going))
    else:
        path.unlink(missing_ok=True)


def refuse_lfs_pointer(path: Path) -> None:
    """Raise InputError if git-lfs left a pointer in place of a file; the name is the one that a link leads to."""
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path.resolve()}: expected the file, found git-lfs's pointer to it; run `git lfs pull`")


def write_json(path: Path | str, content: Any) -> None:
    """Write JSON that a person can read; NaN is a ValueError."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file; InputError if it is missing or cut short."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a JSON file, found none") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        refuse_lfs_pointer(Path(path))
        raise InputError(f"{path}: not valid JSON ({error})") from None


@functools.cache
def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read once in a program; InputError if there is none."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None


def digest(*paths: Path | str) -> str:
    """SHA-256 over the names and bytes of files, and of the files in folders."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    while block := stream.read(1 << 24):
                        total.update(block)
    return total.hexdigest()
