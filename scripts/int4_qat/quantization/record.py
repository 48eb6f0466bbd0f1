"""How an adapter was trained, for the export that must be what its training saw; and how its grids were found.

Both records travel with the weights. That of a training is copied from the adapter's folder into the merged one and on
into the int4 one; that of a calibration comes with the folder in which the training starts.
"""

import shutil
from pathlib import Path

from int4_qat.system import files

RECORD = "qat.json"
# Which grids a training rounded to: each weight's own grid, the grids of the folder where it started, or learned ones.
OWN, GIVEN, LEARNED = "own", "given", "learned"
CALIBRATION = "calibration.json"  # beside given grids: scheme, ignore and method, among others


def copy_record(adapter: Path, folder: Path) -> None:
    """Give a merged folder the record of the training; an adapter that comes from elsewhere may have none."""
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
