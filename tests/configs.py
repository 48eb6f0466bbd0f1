"""The configs that runs of the shipped files have, and the schema that they are held against."""

import copy
from pathlib import Path

import yaml
from snakemake.settings.types import ConfigSettings

from int4_qat.config import layers, schema
from programs import ROOT

SCHEMA = schema.read(ROOT)
CARD = yaml.safe_load((ROOT / "config.yaml").read_text())


def resolved(*files: Path, **overrides: object) -> dict:
    """Return the config of a run with some files for --configfile, and some keys for --config."""
    settings = ConfigSettings(config=overrides, configfiles=files)
    return layers.of_run(CARD, settings.overwrite_config, settings.config)


def demo_config() -> dict:
    """Return the config of the demo, for a test to change."""
    return resolved(ROOT / "profiles" / "demo" / "demo.yaml")


def changed(path, value):
    """Return the default config with another value at a place."""
    config = copy.deepcopy(CARD)
    *parents, key = path
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    return config
