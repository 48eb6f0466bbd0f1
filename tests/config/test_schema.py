"""A training setting is named in the class Recipe and in config.yaml; schema, checks and training follow them."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from configs import CARD, SCHEMA, changed
from int4_qat.config import recipes, schema, workflow_config
from int4_qat.config.recipe import Recipe, TrainerSettings
from int4_qat.training.recipe import Options, training_settings

SETTINGS = schema.recipe_settings()
OPTIONS = Options(*map(Path, ("model", "texts")), "cpu", *map(Path, ("checkpoints", "adapter", "log.csv")))


def test_config_yaml_names_each_setting_and_no_other():
    assert set(CARD["finetune"]) == {*SETTINGS, "start", "report_to", "arms"}


@pytest.mark.parametrize("arm", CARD["finetune"]["arms"])
def test_what_an_arm_trains_by_is_a_recipe(arm):
    given = recipes.training_of(recipes.recipe_of(CARD, arm))
    recipe = Recipe(**json.loads(json.dumps(given)), allow_worse=False)  # finetune.py adds allow_worse
    assert dataclasses.asdict(recipe) == given | {"allow_worse": False}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_required_and_checked(name):
    config = changed(["finetune", name], [])
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line.startswith(f"finetune.{name}: expected ")
    assert ", found []" in line
    (line,) = workflow_config.problems(changed(["finetune", "arms", "qat", name], []), SCHEMA)
    assert line.startswith(f"finetune.arms.qat.{name}: expected ")
    assert ", found []" in line
    del config["finetune"][name]
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line == f"finetune: expected the key '{name}', found none"


def test_trl_gets_its_settings_under_their_own_names():
    recipe = Recipe(**recipes.training_of(recipes.recipe_of(CARD, "qat")), allow_worse=False)
    settings = training_settings(recipe, OPTIONS)
    for field in dataclasses.fields(TrainerSettings):
        assert settings[field.name] == CARD["finetune"][field.name]


def test_the_scheme_of_an_arm_is_no_key_of_its_own():
    (line,) = workflow_config.problems(changed(["finetune", "scheme"], {}), SCHEMA)
    assert line == "finetune: expected keys that exist, found 'scheme'"


@pytest.mark.parametrize("place", [["finetune"], ["finetune", "arms", "qad"]])
def test_a_misspelled_key_names_the_one_that_was_meant(place):
    config = changed([*place, "learning_rat"], 1e-4)
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line == (f"{'.'.join(place)}: expected keys that exist, found 'learning_rat'; did you mean 'learning_rate'?")


def test_report_to_has_the_words_of_transformers():
    found = SCHEMA["properties"]["finetune"]["properties"]["report_to"]["enum"]
    assert found == [
        "none",
        *sorted(INTEGRATION_TO_CALLBACK.keys() - {"flyte"}),
    ]  # transformers never finds flyte, even if it is installed
