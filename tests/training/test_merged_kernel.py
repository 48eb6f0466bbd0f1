"""Test the kernels of the deployed weight, in an environment that has Triton."""

import shutil
import subprocess
from pathlib import Path

import pytest

from programs import ROOT, environment


@pytest.mark.slow
def test_the_kernels_agree_with_the_export_by_tritons_interpreter():
    variables = environment("unsloth") | {"TRITON_INTERPRET": "1"}
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name("interpreted_kernel.py")]
    python = shutil.which("python", path=variables["PATH"])
    result = subprocess.run([python, *words], env=variables, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "78 passed" in result.stdout
