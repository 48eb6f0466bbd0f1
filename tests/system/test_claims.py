"""Test that a job, and the processes that it starts, keep the GPUs that the job asked for."""

import os
import subprocess
import sys

import pytest

from int4_qat.system import devices
from int4_qat.system.errors import InputError
from programs import ROOT

CHILD = """
import os
from int4_qat.system import devices
devices.claim("cuda", 2)
print(",".join(devices.visible()))
os.environ["CUDA_VISIBLE_DEVICES"] = devices.visible()[1]  # as torch's launcher shows it to a rank
devices.claim("cuda", 2)
print(",".join(devices.visible()))
"""


@pytest.mark.parametrize("allocation", [{}, {"SLURM_JOB_ID": "7"}], ids=["box", "slurm"])
def test_a_process_of_a_job_with_two_gpus_may_see_one(allocation, tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "3,5", "TMPDIR": str(tmp_path)} | allocation
    environment |= {"PYTHONPATH": str(ROOT / "scripts")}
    result = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["3,5", "5"]


@pytest.mark.parametrize("hidden", ["-1", "NoDevFiles"])
def test_hidden_gpus_are_none(monkeypatch, hidden):
    monkeypatch.delenv(devices.CLAIMED, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(InputError, match=r"^device: expected a GPU for 'cuda', found none$"):
        devices.claim("cuda")
