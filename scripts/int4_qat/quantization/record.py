"""An export must be what its training saw: the record of a training, held against the manifest of an export.

The record travels with the weights, from the folder of the adapter into the merged one and into the int4 one.
"""

import shutil
from pathlib import Path

from int4_qat.system import files
from int4_qat.system.errors import InputError

RECORD = "qat.json"


def copy_record(adapter: Path, folder: Path) -> None:
    """Give a merged folder the record of the training; an adapter that comes from elsewhere may have none."""
    if (adapter / RECORD).exists():
        shutil.copyfile(adapter / RECORD, folder / RECORD)


def refuse_mismatch(folder: Path, manifest: dict) -> None:
    """InputError that names the first linear which is not exported as it was trained in int4.

    folder holds the record of the training, if there was one; without QAT there is nothing to match.
    """
    if not (folder / RECORD).exists():
        return
    trained = files.read_json(folder / RECORD)
    if trained["scheme"] is None:
        return
    if trained["scheme"] != manifest["scheme"]:
        raise InputError(f"{folder}: was trained in {trained['scheme']}, not in {manifest['scheme']}")
    exported = {layer["name"]: layer for layer in manifest["layers"]}
    for name, in_int4 in trained["linears"].items():
        layer = exported.get(name)
        if layer is None:
            raise InputError(f"{folder}: {name} was trained and is no linear of the export")
        if in_int4 != layer["quantized"]:
            states = {True: "in int4", False: "not in int4"}
            raise InputError(
                f"{folder}: {name} was trained {states[in_int4]} and is exported {states[layer['quantized']]} "
                f"({layer['reason']})"
            )
