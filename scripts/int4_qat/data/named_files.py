"""Parse files that a command line names: `mmlu=resources/mmlu/test.parquet`."""

from collections.abc import Iterable
from pathlib import Path

from int4_qat.system.errors import InputError


def parse(option: str, words: Iterable[str], kind: str) -> dict[str, Path]:
    """Return the files of an option by name; raise InputError for a word that lacks a name or a path."""
    parted = {word: word.partition("=") for word in words}
    for word, (name, _, path) in parted.items():
        if not (name and path):
            raise InputError(f"{option}: expected <name>=<path of a {kind}>, found '{word}'")
    return {name: Path(path) for name, _, path in parted.values()}
