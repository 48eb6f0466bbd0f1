"""What the rules depend on: local modules that a script imports, local files that a source holds."""

import ast
import re
from pathlib import Path

WILDCARD = re.compile(r"\{\s*\w+\s*(,[^{}]*)?\}")  # as Snakemake has it
WRITTEN = ("results", "resources")  # folders in which a rule made everything


def local_modules(script: str) -> list[str]:
    """The script and every module beside it or in our package that it imports, directly or through another."""
    root = Path(script).parent
    found: dict[Path, None] = {}
    waiting = [Path(script)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        for name in _imported_names(path):
            relative = Path(*name.split("."))
            candidates = [root / relative.with_suffix(".py"), root / relative / "__init__.py"]
            waiting += [candidate for candidate in candidates if candidate.exists()]
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


def local_files(source: str) -> list[str]:
    """The files below a local folder, but for hidden ones, as git's and the Hub's; none for a source on the Hub."""
    if source.startswith("hf://"):
        return []
    found = (path for path in Path(source).rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not is_hidden(path.relative_to(source)))


def has_wildcard(path: str) -> bool:
    """Whether Snakemake would take a part of a path, a word in braces, for a wildcard."""
    return bool(WILDCARD.search(path))


def is_hidden(path: Path) -> bool:
    """Whether a part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)
