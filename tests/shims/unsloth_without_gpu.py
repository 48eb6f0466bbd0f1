"""Run scripts/finetune.py with a stand-in for the GPU, so that unsloth's own code runs on a CPU.

The GPU's properties are not real. The model, LoRA, fake quantization, tokens, labels and trainer are unsloth's.

    .venv-unsloth/bin/python tests/shims/unsloth_without_gpu.py --model ... --device cpu   # as scripts/finetune.py
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}

import torch
import unsloth  # noqa: F401

import finetune
from int4_qat.config import limits
from int4_qat.system import errors
from int4_qat.training.backends import unsloth as backend

NO_GPU = SimpleNamespace(name="no GPU", total_memory=80e9, major=9, minor=0, multi_processor_count=1)


def stand_for_a_gpu() -> None:
    """Answer unsloth's questions about the GPU, and apply its patches of trl, which it omits on a CPU."""
    torch.cuda.get_device_properties = lambda *_: NO_GPU
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.memory_allocated = lambda *_: 0
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    from unsloth.models.rl import PatchFastRL
    from unsloth.trainer import _patch_trl_trainer

    PatchFastRL()
    _patch_trl_trainer()


def main() -> None:
    stand_for_a_gpu()
    misfits = limits.unsloth_misfits
    limits.unsloth_misfits = lambda recipe, device: misfits(recipe, "cuda")
    backend.prepare = lambda: None  # unsloth is imported, and there is no GPU to claim
    finetune.main()
    print(f"cuDNN's attention: {torch.backends.cuda.cudnn_sdp_enabled()}")


if __name__ == "__main__":
    errors.run(main)
