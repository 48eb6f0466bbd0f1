"""The fixture that the tests of calibration share: a general text in the stand-in's words."""

import random
from pathlib import Path

import pytest

TOKENS = 1280


@pytest.fixture(scope="session")
def general_text(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a text file of TOKENS tokens."""
    path = tmp_path_factory.mktemp("general") / "general.txt"
    path.write_text("".join(random.Random(2).choices(words, k=TOKENS)))
    return path
