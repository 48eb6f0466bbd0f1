"""The shipped configs, and the schema that they are held against."""

import copy

import yaml

from programs import ROOT

SCHEMA = yaml.safe_load((ROOT / "rules" / "config.schema.yaml").read_text())
CARD = yaml.safe_load((ROOT / "config.yaml").read_text())
DEMO = yaml.safe_load((ROOT / "profiles" / "demo" / "demo.yaml").read_text())


def changed(path, value):
    config = copy.deepcopy(CARD)
    *parents, key = path
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    return config
