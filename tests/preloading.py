"""Load libraries, then run the program that each line of stdin names in a forked process, and print its exit code.

preloaded.py writes the lines, each with a command, a folder and the files for what the program prints:

    python tests/preloading.py torch transformers < programs.jsonl
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"


def serve(libraries: list[str]) -> None:
    sys.path[0] = str(SCRIPTS)
    for library in libraries:
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
        if argv[0] == "-m":
            sys.exit(code)  # Snakemake removes its folder in the user's cache at the end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without taking apart all that was loaded, which would take as long as loading it


def run_here(argv: list[str]) -> int:
    """Run a program, or with -m a module, in this process and return its exit code, as the interpreter would."""
    code = None
    try:
        if argv[0] == "-m":
            sys.path[0], sys.argv = os.getcwd(), argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
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
    serve(sys.argv[1:])
