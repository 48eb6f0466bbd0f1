"""Find what the rules depend on: local modules that a script imports, and local files that a source holds."""

import ast
import functools
import os
import re
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

WILDCARD = re.compile(r"\{\s*\w+\s*(,[^{}]*)?\}")  # Snakemake's syntax
PACKAGE = Path(__file__).parents[1]
# These modules only accept or refuse and change no output, so that editing one is no reason to rebuild anything.
REFUSING = (
    "int4_qat.config.limits",
    "int4_qat.config.model_facts",
    "int4_qat.quantization.mismatch",
    "int4_qat.quantization.requirements",
    "int4_qat.tokenizer.tokenizer_check",
)
WRITTEN = ("results", "resources")  # folders in which rules made everything
# Hidden files, lock files of Excel, backups of editors, and files that macOS adds to archives and Windows to folders.
LEFT_OUT = (".*", "~$*", "*~", "#*#", "*.bak", "__MACOSX", "Thumbs.db", "desktop.ini")


def local_modules(script: str, also: Collection[str] = (), left_out: Collection[str] = ()) -> list[str]:
    """Return a script and every module next to it or in our package that it imports, directly or through another.

    `also` are files that the script loads by a word of the config. The modules named in left_out do not count, nor do
    modules that only they import.
    """
    found: dict[Path, None] = {}
    waiting = [*map(Path, also), Path(script)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            waiting += [module for name, module in _imported_modules(path) if name not in left_out]
    first, *others = found
    return [str(first), *sorted(map(str, others))]


@functools.cache  # the rules ask for the same files many times while they are planned
def _imported_modules(path: Path) -> list[tuple[str, Path]]:
    """Return the names and files of the local modules that a file imports itself."""
    root = PACKAGE.parent
    modules = []
    for name in dict.fromkeys(_imported_names(path)):
        relative = Path(*name.split("."))
        candidates = [root / relative.with_suffix(".py"), root / relative / "__init__.py"]
        modules += [(name, candidate) for candidate in candidates if candidate.exists()]
    return modules


def _imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def local_files(source: str | Path) -> list[str]:
    """Return the files below a local folder that are data to both Snakemake and the programs; none for the Hub.

    Files that a system or an editor leaves behind do not count: hidden files such as git's and the Hub's, backups and
    locks. A source that is itself a file gives that file.
    """
    if str(source).startswith("hf://"):
        return []
    if os.path.isfile(source):
        return [str(source)]
    found = []
    for folder, folders, names in os.walk(Path(source), followlinks=True):
        folders[:] = [name for name in folders if not is_left_out(name)]
        found += [os.path.join(folder, name) for name in names if not is_left_out(name)]
    return sorted(path for path in found if os.path.isfile(path))


def is_left_out(name: str) -> bool:
    """Return whether a file or folder of this name is not data."""
    return any(fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def has_wildcard(path: str) -> bool:
    """Return whether Snakemake would take a part of a path, a word in braces, for a wildcard."""
    return bool(WILDCARD.search(path))
