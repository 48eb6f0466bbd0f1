"""Run programs in processes that are forked from one that has already loaded large libraries."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

OF_ONE_TEST = "PYTEST_CURRENT_TEST"


class Preloaded:
    """The process with some libraries, which has the environment of the first program that is run."""

    def __init__(self, *libraries: str) -> None:
        self.libraries = libraries
        self.environment: dict[str, str] | None = None

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Return whether a program can run in an environment, which libraries read while they are loaded.

        With a GPU none can: once a library has asked CUDA for GPUs, the processes that are forked later cannot use one.
        """
        return not torch.cuda.is_available() and self.environment in (None, _of_all_tests(environment))

    def run(self, command: list[str], environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess:
        """Run the Python program or module of a command line in a folder, and return what it printed."""
        if self.environment is None:
            self.environment = _of_all_tests(environment)
            server = [sys.executable, str(Path(__file__).with_name("preloading.py")), *self.libraries]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen(server, env=self.environment, **pipes)
        with tempfile.TemporaryDirectory() as printed:
            stdout, stderr = (str(Path(printed, name)) for name in ("stdout", "stderr"))
            print(json.dumps([command[1:], str(folder), stdout, stderr]), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(command, code, Path(stdout).read_text(), Path(stderr).read_text())


def _of_all_tests(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != OF_ONE_TEST}
