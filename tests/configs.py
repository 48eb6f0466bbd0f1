"""Build the configs that runs with the shipped files have, and read the schema that validates them."""

import copy
from pathlib import Path

import yaml
from snakemake.settings.types import ConfigSettings

from int4_qat.config import layers, schema
from programs import ROOT

SCHEMA = schema.read(ROOT)
CARD = yaml.safe_load((ROOT / "config.yaml").read_text())


def resolved(*files: Path, **overrides: object) -> dict:
    """Return the config of a run, given the files for --configfile and the keys for --config."""
    settings = ConfigSettings(config=overrides, configfiles=files)
    return layers.of_run(CARD, settings.overwrite_config, settings.config)


def demo_config() -> dict:
    """Return the config of the demo, for a test to change."""
    return resolved(ROOT / "profiles" / "demo" / "demo.yaml")


def cards_arms() -> dict:
    """Return the default config with only the card's arms and their texts, for a test to change."""
    config = copy.deepcopy(CARD)
    del config["texts"]["textbooks"]
    del config["finetune"]["arms"]["qad"], config["plots"]["colours"]["qad"]
    config["variants"].remove("qad-w4a16")
    config["publish"]["variant"] = "qat-int4"
    return config


CARDS_ARMS = cards_arms()


def changed(path, value):
    """Return the default config with another value at the given path."""
    return _changed(CARD, path, value)


def with_cards_arms(path, value):
    """Return the default config with only the card's arms, and with another value at the given path."""
    return _changed(CARDS_ARMS, path, value)


def _changed(default, path, value):
    config = copy.deepcopy(default)
    *parents, key = path
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    return config
