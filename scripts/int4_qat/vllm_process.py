"""vLLM's commands as child processes."""

import os
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

from int4_qat import engine_process

MODULE = "vllm.entrypoints.cli.main"
# The card's setting, and no word to the network.
ENVIRONMENT = {"VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def run(words: list, log: Path, time_limit: float) -> None:
    """Run a vllm command to its end; InputError with its last log lines if it fails or takes too long."""
    environment = os.environ | ENVIRONMENT
    engine_process.run(f"vllm {words[0]}", MODULE, words, log, time_limit, environment=environment)


def started(words: list, log: Path) -> AbstractContextManager[subprocess.Popen]:
    """A running vllm command, which is gone after the block."""
    return engine_process.started(MODULE, words, log, os.environ | ENVIRONMENT)
