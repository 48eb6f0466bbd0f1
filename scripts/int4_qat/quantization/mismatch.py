"""Compare the records of calibration and training with an export's manifest, and refuse an export that differs."""

from collections.abc import Collection
from pathlib import Path

from int4_qat.quantization import record
from int4_qat.system import files
from int4_qat.system.errors import InputError


def refuse_uncalibrated(folder: Path, method: str | None, manifest: dict, on_grids: Collection[str]) -> None:
    """Raise InputError unless a checkpoint was calibrated by `method` for this export, or by none if `method` is None.

    `on_grids` names the linears for which the checkpoint has a grid.
    """
    path = folder / record.CALIBRATION
    if method is None:
        if path.exists() and not record.is_trained_on_grids(folder):
            calibrated = files.read_json(path)["method"]
            raise InputError(
                f"{folder}: expected weights that were not calibrated, found some calibrated by {calibrated}"
            )
        return
    if not path.exists():
        raise InputError(f"{folder}: expected a checkpoint calibrated by {method}, found no {path.name}")
    found = files.read_json(path)
    for key, wanted in {"method": method, "scheme": manifest["scheme"]}.items():
        if found[key] != wanted:
            raise InputError(f"{path}: {key}: expected {wanted}, found {found[key]}")
    for layer in manifest["layers"]:
        if layer["quantized"] != (layer["name"] in on_grids):
            states = {True: "a grid", False: "no grid"}
            wanted, other = states[layer["quantized"]], states[not layer["quantized"]]
            raise InputError(f"{folder}: {layer['name']}: expected {wanted}, found {other}; re-run calibrate")


def refuse_mismatch(folder: Path, manifest: dict, on_grids: Collection[str]) -> None:
    """Raise InputError for the first linear that is not exported as it was trained.

    `folder` holds the record of the training, if there was one; without QAT there is nothing to match. `on_grids` names
    the linears that are exported on a given grid.
    """
    if not (folder / record.RECORD).exists():
        return
    trained = files.read_json(folder / record.RECORD)
    if trained["scheme"] is None:
        return
    if trained["scheme"] != manifest["scheme"]:
        raise InputError(f"{folder}: expected training in {manifest['scheme']}, found {trained['scheme']}")
    exported = {layer["name"]: layer for layer in manifest["layers"]}
    for name, in_int4 in trained["linears"].items():
        layer = exported.get(name)
        if layer is None:
            raise InputError(
                f"{folder}: expected {name} among the linears of the export, since it was trained, found none"
            )
        if in_int4 != layer["quantized"]:
            states = {True: "in int4", False: "not in int4"}
            raise InputError(
                f"{folder}: {name}: expected an export {states[in_int4]}, as it was trained, found one "
                f"{states[layer['quantized']]} ({layer['reason']})"
            )
        given = name in on_grids
        if in_int4 and given != (trained["grids"] != record.OWN):
            grids = {True: "a given grid", False: "its own grid"}
            raise InputError(
                f"{folder}: {name}: expected an export on {grids[not given]}, as trained, found one on {grids[given]}"
            )
