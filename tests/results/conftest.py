"""Provide the fixtures that the tests of the results share."""

import json
from pathlib import Path

import numpy as np
import pytest

import made_results

RIGHT = {"base-bf16": 0.9, "base-int4": 0.7, "qat-int4": 0.8}  # share of questions answered correctly


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Write the files that summarize reads and return their folder.

    There are three variants, measured on a thousand questions, with the memory and latency of the published card.
    """
    generator = np.random.default_rng(0)
    for name, right in RIGHT.items():
        made_results.write_variant(tmp_path / name, right, generator)
    (tmp_path / "qat-int4" / "parity.json").write_text(json.dumps(made_results.parity()))
    (tmp_path / "report.json").write_text('{"splits": {}}')
    (tmp_path / "contamination.json").write_text("{}")
    return tmp_path
