"""vLLM as a child process: its settings, its log, its time limit; nothing of it outlives the block."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from int4_qat import models
from int4_qat.errors import InputError

# The card's setting, and no word to the network.
ENVIRONMENT = {"VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
GRACE_SECONDS = 30
LIBC = ctypes.CDLL(None)
SIGNAL_AT_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG


@contextmanager
def readable(checkpoint: Path, dtype: torch.dtype, device: str) -> Iterator[Path]:
    """A folder that vLLM can run: on a CPU, which has no int4 kernels, a copy with dequantized weights."""
    if not models.is_dequantized(checkpoint, device):
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        # The names of the modules: the way back to the file's names leads through torchao.
        models.load_model(checkpoint, dtype, device).save_pretrained(folder, save_original_format=False)
        models.copy_companions(checkpoint, Path(folder))
        yield Path(folder)


def run(words: list, log: Path, time_limit: float) -> None:
    """Run a vllm command to its end; InputError with its last log lines if it fails or takes too long."""
    with started(words, log) as process:
        try:
            code = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise InputError(f"vllm {words[0]} took more than {time_limit:g} s; {last_lines(log)}") from None
    if code:
        raise InputError(f"vllm {words[0]} ended with exit code {code}; {last_lines(log)}")


@contextmanager
def started(words: list, log: Path) -> Iterator[subprocess.Popen]:
    """A running vllm command in a process group of its own, which is gone after the block, whatever happens."""
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *map(str, words)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
            # If this job is killed it cannot clean up: the kernel tells vLLM, which ends its own processes.
            preexec_fn=lambda: LIBC.prctl(SIGNAL_AT_DEATH_OF_PARENT, signal.SIGTERM),
        )

    def interrupted(number: int, _) -> None:
        process.terminate()  # threads that wait for an answer must not hold up the end
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Let vLLM end its processes, then kill what is left of them."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log in one line: its last lines that name an error, or else its last ones."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in dict.fromkeys(lines) if "Error" in line]
    return f"the end of {log}: {' | '.join((errors or lines)[-count:]) or 'it is empty'}"
