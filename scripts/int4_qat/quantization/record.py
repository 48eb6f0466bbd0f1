"""How an adapter was trained, for the export that must be what its training saw.

The record travels with the weights, from the folder of the adapter into the merged one and into the int4 one.
"""

import shutil
from pathlib import Path

RECORD = "qat.json"
CALIBRATION = "calibration.json"  # of a calibrated checkpoint: its method, its scheme, its texts


def copy_record(adapter: Path, folder: Path) -> None:
    """Give a merged folder the record of the training; an adapter that comes from elsewhere may have none."""
    if (adapter / RECORD).exists():
        shutil.copyfile(adapter / RECORD, folder / RECORD)
