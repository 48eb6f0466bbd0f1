"""Read and copy the records of how an adapter was trained and how its grids were found.

An export must match what its training saw, so both records travel with the weights. The record of a training is copied
from the adapter's folder into the merged one, and from there into the int4 one. The record of a calibration comes with
the folder in which the training starts.
"""

import shutil
from pathlib import Path

from int4_qat.system import files

RECORD = "qat.json"
# Which grids a training rounded to: each weight's own grid, the grids of the folder where it started, or learned ones.
OWN, GIVEN, LEARNED = "own", "given", "learned"
CALIBRATION = "calibration.json"  # next to given grids; holds scheme, ignore and method, among others


def copy_record(adapter: Path, folder: Path) -> None:
    """Copy the record of a training into a merged folder; an adapter from elsewhere may have none."""
    if (adapter / RECORD).exists():
        shutil.copyfile(adapter / RECORD, folder / RECORD)


def is_trained_in_int4(folder: Path) -> bool:
    """Return whether a folder's weights were trained for int4."""
    path = folder / RECORD
    return path.exists() and files.read_json(path)["scheme"] is not None


def is_trained_on_grids(folder: Path) -> bool:
    """Return whether a folder's weights were trained on grids that are not their own."""
    path = folder / RECORD
    return path.exists() and files.read_json(path).get("grids") in (GIVEN, LEARNED)


def has_learned_grids(adapter: Path) -> bool:
    """Return whether a training learned the grids of its adapter."""
    path = adapter / RECORD
    return path.exists() and files.read_json(path).get("grids") == LEARNED
