"""Fixtures that the tests of the divergence share: a text, and the two programs that compare checkpoints on it."""

import random
from pathlib import Path

import pandas as pd
import pytest

import evaluate_divergence
import record_hidden_states
from divergence_runs import CONTEXT, LIMIT, found_by


@pytest.fixture
def text(words: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "texts" / "held_out.txt"
    path.parent.mkdir()
    path.write_text("".join(random.Random(1).choices(words, k=LIMIT + 50)), encoding="utf-8")
    return path


@pytest.fixture
def record(text: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that records a checkpoint's hidden states on the text and compares it with its base.

    It writes the states next to the checkpoint, and returns the report and the table of windows. Without a base, the
    checkpoint itself is the base.
    """

    def run(
        checkpoint: Path, base: Path | None = None, dtype: str = "float32", context: int = CONTEXT, limit: int = LIMIT
    ) -> tuple[dict, pd.DataFrame]:
        options = ["--context", context, "--limit", limit, "--dtype", dtype, "--output", f"{checkpoint}_states"]
        options += ["--base", base, "--base-states", f"{base}_states"] if base else []
        words = ["--checkpoint", checkpoint, "--texts", text, *options]
        return found_by(record_hidden_states, monkeypatch, words, checkpoint)

    return run


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch):
    """Return a function that compares a quantized checkpoint with its base and with its own weights in bf16.

    Both need their recorded states next to them. It returns the report and the table of windows.
    """

    def run(checkpoint: Path, base: Path, own: Path) -> tuple[dict, pd.DataFrame]:
        folders = {"base": base, "own": own}
        words = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
        words += [word for name, folder in folders.items() for word in (f"--{name}-states", f"{folder}_states")]
        return found_by(evaluate_divergence, monkeypatch, ["--checkpoint", checkpoint, *words], checkpoint)

    return run
