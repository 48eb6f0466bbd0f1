"""Write outputs atomically: every output is written next to its place and renamed, so it is whole or absent."""

import functools
import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from int4_qat.system.errors import InputError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # the beginning of every pointer


@contextmanager
def whole(path: Path | str, known: Collection[str] = ()) -> Iterator[Path]:
    """Yield a path next to `path` for writing a file or folder; it is renamed to `path` only if the block succeeds.

    Raise InputError if `path` is a folder that refuse_folder refuses.
    """
    path = Path(path)
    refuse_folder(path, known)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    remove(unfinished)
    try:
        yield unfinished
        if unfinished.is_dir() or path.is_dir():
            remove(path)  # a folder neither replaces anything nor is replaced
        unfinished.replace(path)
    finally:
        remove(unfinished)


def refuse_folder(path: Path, known: Collection[str] = ()) -> None:
    """Raise InputError if `path` is a folder that holds anything but the known names, since it would be replaced.

    Snakemake deletes what a job writes before the job starts, so this protects whoever runs a program by hand.
    """
    if path.is_dir() and (found := sorted({entry.name for entry in path.iterdir()} - set(known))):
        raise InputError(f"{path}: expected a new or empty folder, found one with {found[0]!r}")


def link(source: Path, folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Make a folder of links to the files below `source`, all or only those in `paths`, at the same relative paths.

    Files are linked one by one, since `datasets` would follow a link to the folder itself.
    """
    folder.mkdir(parents=True)
    for path in source.rglob("*") if paths is None else paths:
        if path.is_file():
            place = folder / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())


def remove(path: Path) -> None:
    """Delete a file, folder or link, if it exists, but not what a link leads to.

    A folder is renamed before it is deleted, so that it never exists in part.
    """
    if path.is_dir() and not path.is_symlink():
        going = path.with_name(f".{path.name}.removed")
        shutil.rmtree(going, ignore_errors=True)
        shutil.rmtree(path.rename(going))
    else:
        path.unlink(missing_ok=True)


def refuse_lfs_pointer(path: Path) -> None:
    """Raise InputError if git-lfs left a pointer in place of a file; the message names the target of a link."""
    with path.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path.resolve()}: expected a file, found a git-lfs pointer to it; run `git lfs pull`")


def write_json(path: Path | str, content: Any) -> None:
    """Write human-readable JSON atomically; raise ValueError if the content has a NaN."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Return the content of a JSON file; raise InputError if it is missing, cut short or not valid."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a JSON file, found none") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        refuse_lfs_pointer(Path(path))
        raise InputError(f"{path}: expected valid JSON ({error})") from None


@functools.cache
def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which a program reads only once; raise InputError if there is no such file."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found none") from None


def digest(*paths: Path | str) -> str:
    """Return a SHA-256 over the sizes and bytes of files and, for the files in folders, also over their names there.

    Raise InputError if there is no such file or folder.
    """
    total = hashlib.sha256()
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: expected a file, found none")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    while block := stream.read(1 << 24):
                        total.update(block)
    return total.hexdigest()
