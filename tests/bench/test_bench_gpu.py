"""The benchmark for a GPU goes through its steps on a CPU, at small shapes."""

import json
import subprocess
import sys

import pytest

from programs import ROOT


@pytest.mark.slow
def test_the_steps_fit_the_programs(tmp_path):
    options = ["--folder", tmp_path / "gemma", "--output", tmp_path / "gpu.json", "--shapes", "tiny", "--device", "cpu"]
    options += ["--tokens", 64, "--gpus", 1, 2, "--only", "finetune base", "merge", "quantize", "parity", "memory int4"]
    command = [sys.executable, ROOT / "tests" / "bench" / "bench_gpu.py", *options]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    quantized = ["quantize torchao-plain", "quantize compressed-tensors"]
    trained = ["finetune base", "finetune base on 2 GPUs"]  # two processes, on a CPU
    assert list(steps) == [*trained, "merge", *quantized, "parity", "memory int4"]
    assert steps["quantize torchao-plain"]["figures"]["gb"] < steps["merge"]["figures"]["gb"]
