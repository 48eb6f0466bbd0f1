"""Find out where a training starts: from a model as it came, or from a calibrated one, with the grids to train on."""

from pathlib import Path

from int4_qat.quantization import grids, record
from int4_qat.quantization.int4 import AnyGrid
from int4_qat.system import files
from int4_qat.system.errors import InputError


def method_of(folder: Path) -> str | None:
    """Return the method that calibrated a model, or None for a model as it came.

    Raise InputError if a folder has a record of its calibration but no grids, or grids but no record.
    """
    paths = folder / grids.FILE, folder / record.CALIBRATION
    for path, other in (paths, paths[::-1]):
        if other.exists() and not path.exists():
            raise InputError(f"{path}: expected a file next to {other.name}, found none; re-run calibrate")
    return files.read_json(paths[1])["method"] if paths[1].exists() else None


def grids_for(folder: Path, scheme: dict, ignore: list[str]) -> dict[str, AnyGrid]:
    """Return the grids to train on, by the names of linears; empty if each weight is on its own grid.

    Raise InputError if the folder was calibrated for another scheme, or for other linears.
    """
    given = grids.read(folder)
    if given:
        found = files.read_json(folder / record.CALIBRATION)
        for key, wanted in {"scheme": scheme, "ignore": sorted(ignore)}.items():
            if found[key] != wanted:
                raise InputError(f"{folder}: expected a model calibrated with {key} {wanted}, found {found[key]}")
    return given
