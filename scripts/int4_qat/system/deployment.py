"""Check that the machine that starts a run can provide the run's conda environments."""

import shutil
import sys
from collections.abc import Iterable

CONDA = "conda"


def refuse(methods: Iterable, folders: Iterable[str]) -> None:
    """End the program with one line if rules are to run in conda environments that are unavailable here.

    methods are a run's Snakemake deployment methods; folders are those whose paths its jobs are given.
    """
    if CONDA not in map(str, methods):
        return
    if shutil.which(CONDA) is None:
        sys.exit(
            "software-deployment-method: expected the command conda on this machine, found none; install Miniforge, or "
            "use --sdm env-modules to plan, or to run all rules in the active environment"
        )
    for folder in folders:
        if " " in folder:
            sys.exit(f"{folder}: expected a path without a space, which conda and its environments cannot have")
