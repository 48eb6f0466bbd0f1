"""Test the configs in examples/: each is complete, and its recipe is the default except where it says otherwise."""

import pytest

from configs import CARD, SCHEMA, resolved
from int4_qat.config import recipes, workflow_config
from programs import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_config(path):
    config = resolved(path)
    assert workflow_config.problems(config, SCHEMA) == []
    assert [*config["models"]] == [path.stem]
    assert config["publish"]["variant"] == "qad-w4a16"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_seeds_of_an_example_are_trained_as_the_default_is(path):
    """Only the marks of the model's turns, memory settings, and the optimizer and rate measured on it may differ."""
    config, free = resolved(path), {"seed", "gradient_checkpointing", "optim", "instruction_part", "response_part"}
    free |= {"grid_learning_rate"}
    default = recipes.recipe_of(CARD, "qad")
    for number, arm in enumerate(["qad", "qad_1", "qad_2"]):
        recipe = recipes.recipe_of(config, arm)
        assert recipe["seed"] == number
        assert {key: recipe[key] for key in recipe.keys() - free} == {
            key: default[key] for key in default.keys() - free
        }
