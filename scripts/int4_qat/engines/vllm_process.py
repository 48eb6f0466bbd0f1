"""Run vLLM's commands as child processes."""

import os
import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

from int4_qat.checkpoint import weight_files
from int4_qat.engines import processes, stored_words
from int4_qat.quantization import packed_weight
from int4_qat.system.errors import InputError

MODULE = "vllm.entrypoints.cli.main"
HOST = "127.0.0.1"
# Nothing is sent to the network, and a server on this machine is not asked through a proxy.
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
SETTINGS |= {"NO_PROXY": HOST, "no_proxy": HOST}
SETTINGS |= {"VLLM_CONFIGURE_LOGGING": "1", "VLLM_LOGGING_LEVEL": "INFO"}  # the log names the kernels
SPLIT_BY_INPUT = ("o_proj", "down_proj")
KERNEL = re.compile(r"Using (\w+) for CompressedTensorsWNA16")
FALL_BACK = re.compile(r"--linear-backend=.*(?:using automatic selection|falling back to).*")


def shared_by(gpus: int, folder: Path) -> list[str]:
    """Return the arguments that spread a model over the given number of GPUs of one host; none for one GPU.

    Raise InputError if this would cut a group of int4 weights in two: vLLM splits the inputs of the linears at the end
    of an attention or an MLP.
    """
    if gpus == 1:
        return []
    if stored_words.method_of(folder) == packed_weight.METHOD:
        _, words = stored_words.layout_of(folder)
        for key, stored in weight_files.stored_tensors(folder).items():
            module, _, part = key.rpartition(".")
            columns = stored.shape[-1] * packed_weight.PER_WORD
            if (
                part == packed_weight.PACKED
                and module.endswith(SPLIT_BY_INPUT)
                and columns % (gpus * words["group_size"])
            ):
                found = f"{columns} inputs of {module} in groups of {words['group_size']}"
                raise InputError(f"gpu: expected whole groups on each of {gpus} GPUs, found {found}")
    return ["--tensor-parallel-size", str(gpus)]


def run(words: list, log: Path, time_limit: float, cache: Path | None = None) -> None:
    """Run a vllm command to its end; raise InputError with its last log lines if it fails or takes too long.

    Code that vLLM compiles is kept in `cache` for other runs, or discarded if that is None.
    """
    processes.run(f"vllm {words[0]}", MODULE, words, log, time_limit, environment=environment(cache))


def started(words: list, log: Path) -> AbstractContextManager[subprocess.Popen]:
    """Return a context with a running vllm command, which is gone after the block."""
    return processes.started(MODULE, words, log, environment())


def environment(cache: Path | None = None) -> dict[str, str]:
    """Return the environment of a vllm command; compiled code is kept in `cache`, or nowhere, as on the card."""
    kept = {"VLLM_DISABLE_COMPILE_CACHE": "0" if cache else "1"} | ({"VLLM_CACHE_ROOT": str(cache)} if cache else {})
    return os.environ | SETTINGS | kept


def kernel_of(folder: Path, log: Path) -> str | None:
    """Return, from its log, the kernels with which vLLM ran a folder in compressed-tensors, or None for other folders.

    vLLM chooses a kernel for each linear, usually the same one. Raise InputError if the log names none, or says that
    vLLM used another kernel than was asked for.
    """
    if stored_words.method_of(folder) != packed_weight.METHOD:
        return None
    text = log.read_text(errors="replace")
    if fall_back := FALL_BACK.search(text):
        raise InputError(f"{log}: expected the kernel that --linear-backend names, found '{fall_back[0].strip()}'")
    found = sorted(set(KERNEL.findall(text)))
    if not found:
        raise InputError(f"{log}: expected the name of an int4 kernel, found none")
    return ", ".join(found)
