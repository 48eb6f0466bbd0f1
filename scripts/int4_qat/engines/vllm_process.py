"""vLLM's commands as child processes."""

import os
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

from int4_qat.engines import processes
from int4_qat.system import scratch

MODULE = "vllm.entrypoints.cli.main"
PLUGIN = Path(__file__).parents[2] / "vllm_plugin"
# The card's setting, and no word to the network.
SETTINGS = {"VLLM_DISABLE_COMPILE_CACHE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def run(words: list, log: Path, time_limit: float) -> None:
    """Run a vllm command, with our plugin, to its end; InputError with its last lines if it fails or takes too long."""
    with scratch.plain(PLUGIN) as plugin:
        path = os.pathsep.join(filter(None, [str(plugin), os.environ.get("PYTHONPATH")]))
        environment = os.environ | SETTINGS | {"PYTHONPATH": path}
        processes.run(f"vllm {words[0]}", MODULE, words, log, time_limit, environment=environment)


def started(words: list, log: Path) -> AbstractContextManager[subprocess.Popen]:
    """A running vllm command, without our plugin, as others serve; it is gone after the block."""
    return processes.started(MODULE, words, log, os.environ | SETTINGS)
