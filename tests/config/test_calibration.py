"""Test the config of calibration and of a training's start: mistakes are one line; test text never calibrates."""

import copy

import pytest

from configs import CARDS_ARMS, SCHEMA, demo_config
from configs import with_cards_arms as changed
from int4_qat.config import recipes, workflow_config

TEXTS = CARDS_ARMS["texts"]
TRAIN, TEST = TEXTS["wikitext_train"], CARDS_ARMS["evaluation"]["divergence"]["texts"]["wikitext"]
GPTQ = CARDS_ARMS["quantizations"]["gptq"]
BEGUN = {"quantization": "w4a16", "start": "gptq", "backend": "transformers"}


def config_of(*changes):
    """Return the card's config with other values at the given paths."""
    config = copy.deepcopy(CARDS_ARMS)
    for path, value in changes:
        *parents, key = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[key] = value
    return config


def named(**texts):
    """Return the card's config, calibrating only on the given texts."""
    return config_of(("texts", texts), ("calibration.texts", [*texts]))


def arm(**changes):
    """Return the card's config with another arm, which starts from the gptq base and trains in w4a16 by default."""
    names = [*CARDS_ARMS["variants"], "begun-w4a16"]
    return config_of(("finetune.arms.begun", BEGUN | changes), ("variants", names))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            changed(["calibration"], None),
            "calibration.texts: expected one or more of questions, wikitext_train, since 'gptq'",
        ),
        (changed(["calibration", "texts"], []), "calibration.texts: expected one or more of questions, wikitext_train"),
        (
            changed(["calibration", "texts"], ["c4"]),
            "calibration.texts[0]: expected one of questions, wikitext_train, f",
        ),
        (changed(["calibration", "texts"], ["questions"] * 2), "calibration.texts: ['questions', 'questions'] has non"),
        (changed(["calibration", "texts"], "questions"), "calibration.texts: expected a list, found 'questions'"),
        (changed(["calibration", "samples"], 1), "calibration.samples: expected 2 or more, one per text, found 1"),
        (changed(["calibration", "samples"], 0), "calibration.samples: 0 is less than the minimum of 1"),
        (changed(["calibration", "length"], 1), "calibration.length: 1 is less than the minimum of 2"),
        (changed(["calibration", "batch_size"], 0), "calibration.batch_size: 0 is less than the minimum of 1"),
        (
            changed(["calibration", "dtype"], "float16"),
            "calibration.dtype: expected one of 'bfloat16', 'float32'",
        ),
        (changed(["calibration", "seed"], -1), "calibration.seed: -1 is less than the minimum of 0"),
        (changed(["calibration", "damping"], 0.01), "calibration: expected keys that exist, found 'damping'"),
        (changed(["texts"], None), "texts: expected keys with values, found None; there is no value"),
        (
            named(questions=TRAIN),
            "texts: expected a name other than questions, the training questions, found",
        ),
        (
            named(wikitext=TRAIN),
            "texts.wikitext: expected a name that no text in evaluation.divergence.texts has, found",
        ),
        (named(x={"source": TRAIN["source"]}), "texts.x: expected the key 'files', found none"),
        (
            named(x=TRAIN | {"source": "/no/text"}),
            "texts.x.source: expected an existing folder, found none at '/no/tex",
        ),
        (named(x=TRAIN | {"source": "standin"}), "texts.x.source: expected a section 'standin' in the config, found"),
        (
            named(x=TRAIN | {"source": CARDS_ARMS["models"]["gemma-3-12b-it"]["source"]}),
            "texts.x.source: expected hf://datasets/<owner>/<name>@<commit>, found",
        ),
        (
            named(x=TEST),
            "calibration.texts[0]: expected a text with other files than evaluation.divergence.texts.",
        ),
        (named(x=TEST | {"column": "page"}), "calibration.texts[0]: expected a text with other files than eval"),
        (named(x=TEST | {"files": "*.parquet"}), "calibration.texts[0]: expected a text with other files than "),
        (
            named(x=TEST | {"source": f"hf://datasets/Salesforce/wikitext@{'0' * 40}"}),
            "calibration.texts[0]: expected a text with other files than evaluation.divergence.texts.wikitext",
        ),
        (
            changed(["finetune", "arms", "qat"], {"quantization": "gptq"}),
            "finetune.arms.qat.quantization: expected null or one of int4, w4a16, since one that is calibrated",
        ),
        (arm(start=1), "finetune.arms.begun.start: expected a text or null, found 1; put it in quotes"),
        (
            arm(start="w4a16"),
            "finetune.arms.begun.start: expected null or gptq (calibrated, with the scheme and `ignore`",
        ),
        (
            arm(start="nothing"),
            "finetune.arms.begun.start: expected null or gptq (calibrated, with the scheme and `ign",
        ),
        (arm(quantization=None), "finetune.arms.begun.start: expected null in an arm whose quantization is null, foun"),
        (
            changed(["finetune", "arms", "qat", "start"], "gptq"),
            "finetune.arms.qat.start: expected null (calibrated, with the scheme and `ignore` of 'int4'), found",
        ),
        (
            changed(["finetune", "start"], "gptq") | {"variants": ["base-bf16", "base-int4", "base-w4a16", "qat-int4"]},
            "finetune.arms.lora.start: expected null in an arm whose quantization is null, found 'gptq'",
        ),
    ],
)
def test_each_mistake_is_one_line(config, expected):
    line, *others = workflow_config.problems(config, SCHEMA)
    assert line.startswith(expected)
    assert "\n" not in line
    assert not others or config["finetune"]["start"] == "gptq"  # a mistake for all arms is reported in each


def test_a_training_begins_at_a_base_that_the_run_calibrates():
    assert workflow_config.problems(arm(), SCHEMA) == []
    config = arm()
    config["variants"].remove("base-gptq")
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line == "variants: expected 'base-gptq', from which the training of 'begun' starts, found none"
    config["variants"].remove("begun-w4a16")  # an arm that no variant needs requires nothing
    assert workflow_config.problems(config, SCHEMA) == []


def test_other_exceptions_are_another_place_to_begin():
    config = arm()
    config["quantizations"]["gptq"] = GPTQ | {"ignore": ["lm_head"]}
    lines = workflow_config.problems(config, SCHEMA)
    assert lines[0].startswith("finetune.arms.begun.start: expected null (calibrated, with the scheme and `ignore`")


def test_where_it_begins_is_no_setting_of_a_training():
    """The start is an input of the training's rule, and its name is stated in the summary and the card."""
    recipe = recipes.recipe_of(arm(), "begun")
    assert (recipe["start"], recipes.recipe_of(CARDS_ARMS, "qat")["start"]) == ("gptq", None)
    assert recipes.training_of(recipe).keys() == recipe.keys() - {"quantization", "start", "allow_worse"}


@pytest.mark.parametrize("section", [None, {**CARDS_ARMS["calibration"], "texts": ["c4"]}])
def test_what_nothing_calibrates_on_may_be_anything(section):
    config = changed(["variants"], ["base-bf16", "base-int4", "qat-int4"])
    config["calibration"] = section
    assert workflow_config.problems(config, SCHEMA) == []
    settings = recipes.settings_of(config, "gemma-3-12b-it")
    assert settings["texts"] == {}
    assert "calibration" not in settings


def test_a_text_that_nothing_uses_is_fine():
    config = config_of(("texts", TEXTS | {"c4": TRAIN | {"files": "c4/*.jsonl"}}))
    assert workflow_config.problems(config, SCHEMA) == []
    settings = recipes.settings_of(config, "gemma-3-12b-it")
    assert (settings["texts"], settings["calibration"]) == (TEXTS, CARDS_ARMS["calibration"])


def test_a_local_text_is_held_out_by_whichever_path_leads_to_it(tmp_path):
    (tmp_path / "text").mkdir()
    for name in ("train-1.txt", "test-1.txt"):
        (tmp_path / "text" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "text")
    config = config_of(
        ("evaluation.divergence.texts", {"mine": {"source": str(tmp_path / "text"), "files": "test-*.txt"}}),
        ("texts", {"x": {"source": str(tmp_path / "link"), "files": "train-*.txt"}}),
        ("calibration.texts", ["x"]),
    )
    assert workflow_config.problems(config, SCHEMA) == []
    for files in ("*.txt", "test-1.txt"):
        config["texts"]["x"]["files"] = files
        (line,) = workflow_config.problems(config, SCHEMA)
        assert line.endswith("a text with other files than evaluation.divergence.texts.mine, found 'x'")


@pytest.mark.parametrize(("files", "twin"), [("*.txt", "families"), ("held_out.txt", "persons")])
def test_the_standins_texts_are_held_out_but_for_the_one_to_train_on(files, twin):
    config = demo_config()
    assert workflow_config.problems(config, SCHEMA) == []
    config["texts"]["x"] = {"source": "standin", "files": files}
    assert workflow_config.problems(config, SCHEMA) == []
    config["calibration"]["texts"] = ["x"]
    (line,) = workflow_config.problems(config, SCHEMA)
    assert line.endswith(f"a text with other files than evaluation.divergence.texts.{twin}, found 'x'")
