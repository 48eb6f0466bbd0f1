"""Load modules that the config names by a word: `torchao-plain` is formats/torchao_plain.py.

A room is a subpackage with such modules, which are loaded only when they are needed. The inputs of a rule include only
the files that its words name, so that editing another method re-runs nothing.
"""

import importlib
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parents[1]
METHODS, FORMATS, BACKENDS = "quantization.methods", "quantization.formats", "training.backends"


def words(room: str) -> list[str]:
    """Return the words for which a room has a file, sorted."""
    found = PACKAGE.joinpath(*room.split(".")).glob("*.py")
    return sorted(path.stem.replace("_", "-") for path in found if path.stem.isidentifier() and path.stem != "__init__")


def load(room: str, word: str) -> ModuleType:
    """Return the module of a word; the room must have a file for it."""
    return importlib.import_module(f"{PACKAGE.name}.{room}.{word.replace('-', '_')}")


def file_of(room: str, word: str) -> str:
    """Return the file of a word, for the inputs of a rule."""
    return str(PACKAGE.joinpath(*room.split("."), f"{word.replace('-', '_')}.py"))
