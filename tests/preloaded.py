"""Run programs in processes that are forked from one that has already loaded the libraries that take seconds to load.

As a program, this file is that process: for each line of JSON that it reads, it forks, runs the program that the line
names, and prints its exit code.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"
LIBRARIES = ["torch", "transformers", "datasets", "int4_qat.checkpoint.architecture", "lm_eval.tasks", "scipy.stats"]
OF_ONE_TEST = "PYTEST_CURRENT_TEST"


class Preloaded:
    """The process with the libraries, which has the environment of the first program that is run."""

    def __init__(self) -> None:
        self.environment: dict[str, str] | None = None

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Return whether a program can run in an environment, which libraries read while they are loaded.

        With a GPU none can: once a library has asked CUDA for GPUs, the processes that are forked later cannot use one.
        """
        return not torch.cuda.is_available() and self.environment in (None, _of_all_tests(environment))

    def run(self, command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess:
        """Run a Python program, given as the interpreter, the program and its arguments, and return what it printed."""
        if self.environment is None:
            self.environment = _of_all_tests(environment)
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen([sys.executable, __file__], env=self.environment, **pipes)
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = (str(Path(folder, name)) for name in ("stdout", "stderr"))
            print(json.dumps([command[1:], os.getcwd(), stdout, stderr]), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(command, code, Path(stdout).read_text(), Path(stderr).read_text())


def _of_all_tests(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != OF_ONE_TEST}


def serve() -> None:
    sys.path[0] = str(SCRIPTS)
    for library in LIBRARIES:
        importlib.import_module(library)
    for line in sys.stdin:
        argv, folder, stdout, stderr = json.loads(line)
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        os.chdir(folder)
        for descriptor, path in enumerate([os.devnull, stdout, stderr]):
            file = os.open(path, os.O_RDWR | os.O_CREAT)
            os.dup2(file, descriptor)
            os.close(file)
        code = run_here(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without taking apart all that was loaded, which would take as long as loading it


def run_here(argv: list[str]) -> int:
    """Run a program in this process and return its exit code, as the interpreter would."""
    sys.argv, code = argv, None
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):  # here the program's frames are gone, and with them its progress bars
        print(code, file=sys.stderr)
    return 1 if isinstance(code, str) else code or 0


if __name__ == "__main__":
    serve()
