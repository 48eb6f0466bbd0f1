"""vLLM's commands as child processes."""

import os
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

from int4_qat import engine_process

MODULE = "vllm.entrypoints.cli.main"
PLUGIN = Path(__file__).parents[1] / "vllm_plugin"
# The card's setting, and no word to the network.
SETTINGS = {"VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def run(words: list, log: Path, time_limit: float) -> None:
    """Run a vllm command to its end; InputError with its last log lines if it fails or takes too long."""
    engine_process.run(f"vllm {words[0]}", MODULE, words, log, time_limit, environment=environment())


def started(words: list, log: Path) -> AbstractContextManager[subprocess.Popen]:
    """A running vllm command, which is gone after the block."""
    return engine_process.started(MODULE, words, log, environment())


def environment() -> dict[str, str]:
    """This process's environment, with vLLM's settings and the plugin on Python's path."""
    path = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **SETTINGS, "PYTHONPATH": path}
