"""The layers of a config: config.yaml, over it what the files of --configfile give, over that what --config gives."""

import copy
from collections.abc import Mapping

# What is given in place of one of these stands there alone: a merge would run the models of both layers.
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
    """Return the content of config.yaml with what was given laid over it, and without the colours of replaced arms.

    `given` is everything as Snakemake merges it, files and --config; `overrides` is what --config gave of it.
    """
    config = copy.deepcopy(laid_over(laid_over(default, given), as_in_a_file(overrides)))
    replaced = _mapping(default, "finetune", "arms").keys() - _mapping(config, "finetune", "arms").keys()
    for arm in replaced - _mapping(given, "plots", "colours").keys():
        _mapping(config, "plots", "colours").pop(arm, None)
    return config


def laid_over(below: object, above: object, place: tuple = ()) -> object:
    """Return the upper of what two layers have at a place; of two mappings each key, unless they are replaced whole."""
    if place in REPLACED_WHOLE or not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: laid_over(below.get(key), value, (*place, key)) for key, value in above.items()}}


def as_in_a_file(value: object) -> object:
    """Return what --config gave with its true, false and null, which Snakemake reads as texts there."""
    if isinstance(value, Mapping):
        return {key: as_in_a_file(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_in_a_file(item) for item in value]
    return WORDS.get(value, value) if isinstance(value, str) else value


def _mapping(config: object, *keys: str) -> Mapping:
    """Return the mapping below some keys, an empty one if there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else {}
