"""One job to a GPU: a cluster hands GPUs out, on one box the jobs take them by lock."""

import fcntl
import os
import sys
import tempfile
from pathlib import Path

import torch

from int4_qat.system.errors import InputError

# Bytes per second between a GPU and its memory, as NVIDIA's data sheets say, by the name that CUDA gives.
BANDWIDTHS = {
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H200": 4.8e12,
}

CLAIMED = "INT4_QAT_CLAIMED_GPU"  # set in a process that has its GPU, and in its children


def claim(device: str) -> None:
    """Show this process one GPU that no other job of this user holds; nothing to do on a CPU.

    A Slurm job with one GPU has it to itself, whatever it is called there; in one with several the jobs take them by
    lock too. Where there are several, the program starts again: torchao and others start CUDA when they are imported,
    and it goes on seeing what was visible then. InputError if there is no GPU, or if each is taken.
    """
    if device != "cuda" or CLAIMED in os.environ:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    if not visible:
        raise InputError("device: expected a GPU for 'cuda', found none")
    names, allocation = visible.split(","), os.environ.get("SLURM_JOB_ID", "")
    if allocation and len(names) == 1:
        return
    free = (name for name in names if _lock(f"{allocation}-{name}" if allocation else name))
    claimed = next(free, None)
    if claimed is None:
        problem = f"each GPU ({visible}) is held by another job"
        raise InputError(f"device: {problem}; run with --resources gpu=<number of GPUs>")
    os.environ |= {"CUDA_VISIBLE_DEVICES": claimed, CLAIMED: claimed}
    if len(names) > 1:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def free_memory() -> int:
    """Return the bytes that are free on this process's GPU."""
    return torch.cuda.mem_get_info()[0]


def refuse_too_small(needed: int, what: str, found: int) -> None:
    """Raise InputError unless so many bytes are found in a GPU's memory; `what` needs them at the least."""
    if found < needed:
        raise InputError(f"device: expected {needed / 1e9:.1f} GB of GPU memory for {what}, found {found / 1e9:.1f} GB")


def name(device: str) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _lock(name: str) -> bool:
    """Whether this process could take a lock, which it then has as long as it lives, also if it starts again."""
    lock = os.open(Path(tempfile.gettempdir()) / f"int4-qat-{os.getuid()}-gpu-{name}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    os.set_inheritable(lock, True)
    return True
