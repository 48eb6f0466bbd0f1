"""Merge the layers of a config: config.yaml, over it the files of --configfile, over those the values of --config."""

import copy
from collections.abc import Mapping

# A value given for one of these replaces the lower layer's: a merge would, for example, run the models of both layers.
REPLACED_WHOLE = {
    ("models",),
    ("data",),
    ("finetune", "arms"),
    ("finetune", "texts"),
    ("quantizations",),
    ("variants",),
    ("texts",),
    ("evaluation", "divergence", "texts"),
    ("evaluation", "questions"),
    ("evaluation", "tasks"),
}
WORDS = {"true": True, "false": False, "null": None}


def of_run(default: Mapping, given: Mapping, overrides: Mapping) -> dict:
    """Return config.yaml with the given values laid over it, and without the colours of replaced arms.

    `given` is everything that Snakemake merged, files and --config; `overrides` is the part of it from --config.
    """
    config = copy.deepcopy(laid_over(laid_over(default, given), as_in_a_file(overrides)))
    replaced = _mapping(default, "finetune", "arms").keys() - _mapping(config, "finetune", "arms").keys()
    for arm in replaced - _mapping(given, "plots", "colours").keys():
        _mapping(config, "plots", "colours").pop(arm, None)
    return config


def laid_over(below: object, above: object, place: tuple = ()) -> object:
    """Return the upper layer's value at a place; two mappings are merged key by key, unless they are replaced whole."""
    if place in REPLACED_WHOLE or not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: laid_over(below.get(key), value, (*place, key)) for key, value in above.items()}}


def as_in_a_file(value: object) -> object:
    """Return what --config gave with true, false and null converted; Snakemake reads them as strings there."""
    if isinstance(value, Mapping):
        return {key: as_in_a_file(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_in_a_file(item) for item in value]
    return WORDS.get(value, value) if isinstance(value, str) else value


def _mapping(config: object, *keys: str) -> Mapping:
    """Return the mapping at a path of keys, or an empty one if there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}
