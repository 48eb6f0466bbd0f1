"""Claim the GPUs of a job: a cluster assigns them; on a single machine the jobs take them by lock."""

import fcntl
import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from int4_qat.system.errors import InputError

# Bytes per second between a GPU and its memory, from NVIDIA's data sheets, by the name that CUDA gives the GPU.
BANDWIDTHS = {
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H100 PCIe": 2.0e12,
    "NVIDIA H200": 4.8e12,
}

NO_GPU = ("-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide all GPUs: the usual one, and Slurm's
CLAIMED = "INT4_QAT_CLAIMED_GPU"  # set in a process that has claimed its GPUs, and in its children


def claim(device: str, count: int = 1) -> None:
    """Show this process `count` GPUs that no other job of this user holds; do nothing on a CPU.

    A Slurm allocation of exactly `count` GPUs needs no locks, whatever the GPUs are called there. In a larger one, jobs
    take GPUs by lock, as they do outside Slurm. If more GPUs than `count` are visible, the program re-executes itself:
    torchao and other libraries start CUDA when they are imported, and CUDA goes on seeing what was visible then. Raise
    InputError if there are fewer GPUs than `count`, or if too few are free.
    """
    if device != "cuda" or CLAIMED in os.environ:
        return
    names, allocation = visible(), os.environ.get("SLURM_JOB_ID", "")
    if len(names) < count:
        wanted = "a GPU" if count == 1 else f"{count} GPUs"
        raise InputError(f"device: expected {wanted} for 'cuda', found {len(names) or 'none'}")
    if allocation and len(names) == count:
        _show(names)
        return
    free = (name for name in names if _lock(f"{allocation}-{name}" if allocation else name))
    claimed = list(itertools.islice(free, count))
    if len(claimed) < count:
        seen = ",".join(names)
        wanted = f"{count} free GPUs" if count > 1 else "a free GPU"
        raise InputError(
            f"device: expected {wanted}, found {len(claimed)} free among {seen}; use --resources gpu=<number of GPUs>"
        )
    _show(claimed)
    if len(names) > count:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def visible() -> list[str]:
    """Return the names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES lists them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    return listed.split(",") if listed and listed not in NO_GPU else []


@contextmanager
def shown(gpu: str) -> Iterator[None]:
    """Show only one GPU to processes that are started inside the block."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def release() -> None:
    """Give the memory of models that nothing refers to any more back to the GPUs, where it counts as free."""
    gc.collect()  # a model that is spread over GPUs refers to itself
    torch.cuda.empty_cache()


def free_memory() -> int:
    """Return the free bytes on this process's GPU, or on the first one if it sees several."""
    return torch.cuda.mem_get_info(0)[0]


def free_memories() -> list[int]:
    """Return the free bytes on each GPU that this process sees."""
    return [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]


def place_for(needed: int, what: str) -> str:
    """Return where transformers puts weights of `needed` bytes: "cuda", or "auto" if they take several GPUs.

    Raise InputError if the weights of `what` do not fit on the GPUs that this process sees.
    """
    free = free_memories()
    refuse_too_small(needed, what, sum(free))
    return "cuda" if needed <= free[0] else "auto"


def refuse_too_small(needed: int, what: str, found: int) -> None:
    """Raise InputError unless the `found` bytes of GPU memory are enough for `what`, which takes at least `needed`."""
    if found < needed:
        raise InputError(f"device: expected {needed / 1e9:.1f} GB of GPU memory for {what}, found {found / 1e9:.1f} GB")


def name(device: str) -> str:
    """Return the GPU's name, or cpu."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _show(names: list[str]) -> None:
    """Show only the given GPUs to this process and its children, and mark them as claimed."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": ",".join(names), CLAIMED: ",".join(names)}


def _lock(name: str) -> bool:
    """Return whether this process could take the lock. It keeps the lock for its lifetime, also across exec."""
    lock = os.open(Path(tempfile.gettempdir()) / f"int4-qat-{os.getuid()}-gpu-{name}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    os.set_inheritable(lock, True)
    return True
