"""One job to a GPU: a cluster hands GPUs out, on one box the jobs take them by lock."""

import fcntl
import os
import tempfile
from pathlib import Path

import torch

from int4_qat.errors import InputError

# Bytes per second between a GPU and its memory, as NVIDIA's data sheets say, by the name that CUDA gives.
BANDWIDTHS = {
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H200": 4.8e12,
}

_held = []  # lock files, open as long as this process lives


def claim(device: str) -> None:
    """Show this process one GPU that no other job of this user holds; nothing to do on a CPU.

    Call it before CUDA is used. A Slurm job with one GPU has it to itself, whatever it is called there; in one with
    several the jobs take them by lock too. InputError if there is no GPU, or if each is taken.
    """
    if device != "cuda" or _held:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    if not visible:
        raise InputError("device: expected a GPU for 'cuda', found none")
    allocation = os.environ.get("SLURM_JOB_ID", "")
    if allocation and "," not in visible:
        return
    for name in visible.split(","):
        if _lock(f"{allocation}-{name}" if allocation else name):
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return
    raise InputError(f"device: each GPU ({visible}) is held by another job; run with --resources gpu=<number of GPUs>")


def name(device: str) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _lock(name: str) -> bool:
    lock = (Path(tempfile.gettempdir()) / f"int4-qat-{os.getuid()}-gpu-{name}.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return False
    _held.append(lock)
    return True
