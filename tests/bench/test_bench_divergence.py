"""The benchmark for a GPU goes through all its steps on a CPU, at small shapes."""

import json
import subprocess
import sys

import pytest

from programs import ROOT


@pytest.mark.slow
def test_the_steps_fit_the_programs(tmp_path):
    options = ["--folder", tmp_path / "gemma", "--output", tmp_path / "found.json", "--shapes", "tiny"]
    options += ["--device", "cpu", "--tokens", 300, "--context", 64]
    command = [sys.executable, ROOT / "tests" / "bench" / "bench_divergence.py", *options]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    steps = json.loads((tmp_path / "found.json").read_text())["steps"]
    assert list(steps) == ["base-bf16", "base-int4"]
    for step in steps.values():
        assert min(step["forward_s"], step["comparison_s"]) > 0
        assert min(value for name, value in step.items() if name.endswith("_s")) > 0
    (found,) = json.loads((tmp_path / "gemma" / "base-int4.json").read_text())["texts"].values()
    assert found["kl"] > 0
