"""Read what config.json says of a folder's int4 weights, and refuse all but the two layouts that the loader reads."""

from pathlib import Path
from types import ModuleType
from typing import Any

from int4_qat.checkpoint import architecture
from int4_qat.quantization import packed_weight, plain_weight
from int4_qat.system.errors import InputError

LAYOUTS = {layout.METHOD: layout for layout in (plain_weight, packed_weight)}
PLAIN = {"_data": "PLAIN", "_type": "Int4PackingFormat"}  # in torchao's config
IN_GROUPS = {"type": "int", "num_bits": 4, "strategy": "group"}  # in compressed-tensors' `weights`


def words_of(folder: Path | str) -> dict | None:
    """Return the quantization_config of config.json, or None for a folder in bf16."""
    return getattr(architecture.read_config(folder), "quantization_config", None)


def method_of(folder: Path | str) -> str | None:
    """Return the quant_method of a folder, or None for one in bf16; raise InputError if it is unknown."""
    words = words_of(folder)
    if words is None:
        return None
    if (found := words.get("quant_method")) not in LAYOUTS:
        raise InputError(f"{_key(folder)}.quant_method: expected {' or '.join(LAYOUTS)}, found {found!r}")
    return found


def layout_of(folder: Path | str) -> tuple[ModuleType, dict]:
    """Return the layout of an int4 folder, and the settings that, with a weight's shape, give the shapes of its parts.

    Raise InputError if the folder is in a layout that the loader does not read.
    """
    method = method_of(folder)
    read = {plain_weight.METHOD: _plain, packed_weight.METHOD: _packed}[method]
    return LAYOUTS[method], read(_key(folder), words_of(folder))


def _plain(key: str, words: dict) -> dict:
    quantized = (words.get("quant_type") or {}).get("default") or {}
    data = quantized.get("_data") or {}
    _expect(f"{key}.quant_type.default._type", "Int4WeightOnlyConfig", quantized.get("_type"))
    data_key = f"{key}.quant_type.default._data"
    _expect(f"{data_key}.int4_packing_format", PLAIN, data.get("int4_packing_format"))
    return {"group_size": _size(f"{data_key}.group_size", data.get("group_size"))}


def _packed(key: str, words: dict) -> dict:
    _expect(f"{key}.format", packed_weight.LAYOUT, words.get("format"))
    groups = words.get("config_groups") or {}
    if len(groups) != 1:
        raise InputError(f"{key}.config_groups: expected one group, found {', '.join(groups) or 'none'}")
    ((name, group),) = groups.items()
    weights = group.get("weights") or {}
    _expect(f"{key}.config_groups.{name}.weights", IN_GROUPS, {word: weights.get(word) for word in IN_GROUPS})
    if group.get("input_activations"):
        raise InputError(f"{key}.config_groups.{name}.input_activations: expected none, found some")
    weights_key, symmetric = f"{key}.config_groups.{name}.weights", weights.get("symmetric")
    if not isinstance(symmetric, bool):
        raise InputError(f"{weights_key}.symmetric: expected true or false, found {symmetric!r}")
    return {"group_size": _size(f"{weights_key}.group_size", weights.get("group_size")), "symmetric": symmetric}


def _expect(key: str, expected: Any, found: Any) -> None:
    if found != expected:
        raise InputError(f"{key}: expected {expected}, found {found!r}")


def _size(key: str, found: Any) -> int:
    if type(found) is not int or found < 1:
        raise InputError(f"{key}: expected a number of 1 or more, found {found!r}")
    return found


def _key(folder: Path | str) -> str:
    return f"{folder}/config.json: quantization_config"
