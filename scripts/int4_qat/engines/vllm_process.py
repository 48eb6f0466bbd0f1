"""vLLM's commands as child processes."""

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
# No word to the network; a server on this machine is not asked through a proxy.
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
SETTINGS |= {"NO_PROXY": HOST, "no_proxy": HOST}
SETTINGS |= {"VLLM_CONFIGURE_LOGGING": "1", "VLLM_LOGGING_LEVEL": "INFO"}  # the log names the kernels
SPLIT_BY_INPUT = ("o_proj", "down_proj")
KERNEL = re.compile(r"Using (\w+) for CompressedTensorsWNA16")
FALL_BACK = re.compile(r"--linear-backend=.*(?:using automatic selection|falling back to).*")


def shared_by(gpus: int, folder: Path) -> list[str]:
    """Return the words that spread a model over so many GPUs of one host; none for one GPU.

    Raise InputError if that cut a group of int4 weights in two: vLLM splits the inputs of the linears that end an
    attention or an MLP.
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
    """Run a vllm command to its end; raise InputError with its last lines if it fails or takes too long.

    What vLLM compiles is kept in `cache` for other runs, or discarded if there is none.
    """
    processes.run(f"vllm {words[0]}", MODULE, words, log, time_limit, environment=environment(cache))


def started(words: list, log: Path) -> AbstractContextManager[subprocess.Popen]:
    """Return a running vllm command; it is gone after the block."""
    return processes.started(MODULE, words, log, environment())


def environment(cache: Path | None = None) -> dict[str, str]:
    """Return the variables of a vllm command; what it compiles is kept in a folder, or nowhere, as the card has it."""
    kept = {"VLLM_DISABLE_COMPILE_CACHE": "0" if cache else "1"} | ({"VLLM_CACHE_ROOT": str(cache)} if cache else {})
    return os.environ | SETTINGS | kept


def kernel_of(folder: Path, log: Path) -> str | None:
    """Return the kernels with which vLLM computed a folder in compressed-tensors, by its log; None of other folders.

    vLLM chooses one for each linear; they are usually the same. Raise InputError if the log names none, or says that
    vLLM took another kernel than was asked for.
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
