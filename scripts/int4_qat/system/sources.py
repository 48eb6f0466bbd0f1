"""What the rules depend on: local modules that a script imports, local files that a source holds."""

import ast
import os
import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

WILDCARD = re.compile(r"\{\s*\w+\s*(,[^{}]*)?\}")  # as Snakemake has it
PACKAGE = Path(__file__).parents[1]
# What lets through or refuses and changes nothing: an edit of it is no reason to make anything again.
REFUSING = (
    "int4_qat.config.limits",
    "int4_qat.config.model_facts",
    "int4_qat.quantization.mismatch",
    "int4_qat.quantization.requirements",
    "int4_qat.tokenizer.tokenizer_check",
)
WRITTEN = ("results", "resources")  # folders in which a rule made everything
# Hidden files; locks of Excel; backups of editors; what macOS puts into archives, and Windows into folders.
LEFT_OUT = (".*", "~$*", "*~", "#*#", "*.bak", "__MACOSX", "Thumbs.db", "desktop.ini")


def local_modules(script: str, also: Collection[str] = (), left_out: Collection[str] = ()) -> list[str]:
    """Return a script and every module beside it or in our package that it imports, directly or through another.

    `also` are files that it loads by a word of the config. The modules named in left_out do not count, nor does what
    they alone import.
    """
    root = PACKAGE.parent
    found: dict[Path, None] = {}
    waiting = [*map(Path, also), Path(script)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        for name in filter(lambda name: name not in left_out, _imported_names(path)):
            relative = Path(*name.split("."))
            candidates = [root / relative.with_suffix(".py"), root / relative / "__init__.py"]
            waiting += [path for path in candidates if path.exists()]
    first, *others = found
    return [str(first), *sorted(map(str, others))]


def _imported_names(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def local_files(source: str | Path) -> list[str]:
    """The files below a local folder that are data to Snakemake and to the programs alike; none for the Hub.

    Left out is what a system or an editor leaves behind: hidden files, as git's and the Hub's, backups and locks. Of a
    source that is a file itself, that file.
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
    """Whether a file or folder of this name is no data."""
    return any(fnmatchcase(name, pattern) for pattern in LEFT_OUT)


def has_wildcard(path: str) -> bool:
    """Whether Snakemake would take a part of a path, a word in braces, for a wildcard."""
    return bool(WILDCARD.search(path))
