"""A user's config is merged over config.yaml, and the jobs of a run get the config that Snakemake began with."""

import json
import sys

import pytest
import yaml

from configs import CARD, SCHEMA, demo_config, resolved
from int4_qat.config import layers, workflow_config
from programs import ROOT
from workflows import copy_workflow, snakemake

DEMO = ROOT / "profiles" / "demo" / "demo.yaml"
INT4 = CARD["quantizations"]["int4"]
SFT = {"quantization": None}


def run_of(tmp_path, given, **overrides):
    """Return the config of a run with the given content in the user's config file."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return resolved(path, **overrides)


def test_nothing_given_is_the_default():
    assert resolved() == CARD


@pytest.mark.parametrize(
    ("given", "place", "expected"),
    [
        ({"finetune": {"r": 16}}, ["finetune"], CARD["finetune"] | {"r": 16}),
        ({"models": {"mine": {"source": "/m"}}}, ["models"], {"mine": {"source": "/m"}}),
        ({"finetune": {"arms": {"sft": SFT}}}, ["finetune", "arms"], {"sft": SFT}),
        ({"finetune": {"texts": {"mine": 1}}}, ["finetune", "texts"], {"mine": 1}),
        ({"quantizations": {"small": INT4}}, ["quantizations"], {"small": INT4}),
        ({"variants": ["base-bf16"]}, ["variants"], ["base-bf16"]),
        ({"texts": {}}, ["texts"], {}),
        ({"calibration": {"samples": 8}}, ["calibration"], CARD["calibration"] | {"samples": 8}),
        ({"evaluation": {"tasks": []}}, ["evaluation", "tasks"], []),
        ({"evaluation": {"chartqa": None}}, ["evaluation"], CARD["evaluation"] | {"chartqa": None}),
        ({"evaluation": {"latency": {"batch_sizes": [1]}}}, ["evaluation", "latency", "batch_sizes"], [1]),
        ({"finetune": None}, ["finetune"], None),
    ],
)
def test_what_is_given_is_laid_over_the_default(tmp_path, given, place, expected):
    found = run_of(tmp_path, given)
    untouched = CARD.keys() - given.keys() - {"plots"}  # replaced arms take their colours with them
    assert all(found[key] == CARD[key] for key in untouched)
    for key in place:
        found = found[key]
    assert found == expected


def test_null_in_the_default_may_become_something():
    default = CARD | {"evaluation": CARD["evaluation"] | {"chartqa": None}}
    charts = CARD["evaluation"]["chartqa"]
    given = {"evaluation": {"chartqa": charts}}
    assert layers.of_run(default, given, {})["evaluation"]["chartqa"] == charts


def test_what_is_given_stays_as_it_was():
    given = {"variants": ["base-bf16", "base-int4"]}
    layers.of_run(CARD, given, {})["variants"].append("qat-int4")
    assert given["variants"] == ["base-bf16", "base-int4"]


def test_files_are_merged_and_config_comes_last(tmp_path):
    """Two files are merged as Snakemake does it; then --config replaces the same tables whole."""
    first = {"models": {"a": {"source": "/a"}}, "finetune": {"r": 16, "lora_alpha": 32}}
    second = {"models": {"b": {"source": "/b"}}, "finetune": {"r": 4}}
    paths = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    for path, content in zip(paths, (first, second), strict=True):
        path.write_text(yaml.safe_dump(content))
    found = resolved(*paths)
    assert list(found["models"]) == ["a", "b"]
    assert (found["finetune"]["r"], found["finetune"]["lora_alpha"]) == (4, 32)
    found = resolved(*paths, models={"c": {"source": "/c"}}, finetune={"r": 2})
    assert list(found["models"]) == ["c"]
    assert (found["finetune"]["r"], found["finetune"]["lora_alpha"]) == (2, 32)


def test_config_on_the_command_line_knows_true_false_and_null():
    """Snakemake reads these words in --config as strings; they are converted, but longer strings stay as they are."""
    found = resolved(evaluation={"chartqa": "null"}, publish={"private": "false", "license": "null and void"})
    assert found["evaluation"]["chartqa"] is None
    assert found["publish"]["private"] is False
    assert found["publish"]["license"] == "null and void"


def test_the_colours_of_replaced_arms_go_with_them(tmp_path):
    arms = {"arms": {"sft": SFT, "qat": {"quantization": "int4"}}}
    mine = {"finetune": arms, "variants": ["base-bf16", "base-int4", "sft-int4", "qat-int4"]}
    mine |= {"publish": {"variant": "qat-int4"}}
    found = run_of(tmp_path, mine)
    assert found["plots"]["colours"].keys() == {"base", "qat"}
    assert workflow_config.problems(found, SCHEMA) == []
    (line,) = workflow_config.problems(run_of(tmp_path, mine | {"plots": {"colours": {"lora": "#000000"}}}), SCHEMA)
    assert line.startswith("plots.colours.lora: expected one of base, sft, qat")


def test_the_demo_is_the_default_but_for_what_it_names():
    demo = demo_config()
    assert list(demo["models"]) == ["demo"]
    assert {entry["group_size"] for entry in demo["quantizations"].values()} == {64}
    assert set(demo["variants"]) - set(CARD["variants"]) == {"qad-int4"}
    assert demo["finetune"]["arms"].items() > {arm: CARD["finetune"]["arms"][arm] for arm in ("lora", "qat")}.items()
    assert demo["finetune"]["arms"].keys() == CARD["finetune"]["arms"].keys()
    assert demo["evaluation"]["tasks"] == []
    assert demo["evaluation"]["chartqa"] is demo["evaluation"]["serving"] is None
    assert demo["plots"] == CARD["plots"]


def test_the_demo_names_only_what_differs():
    def repeated(below, above, place=()):
        if place in layers.REPLACED_WHOLE or not isinstance(above, dict) or not isinstance(below, dict):
            return [place] if below == above else []
        return [found for key in above if key in below for found in repeated(below[key], above[key], (*place, key))]

    assert repeated(CARD, yaml.safe_load(DEMO.read_text())) == []


PROBE = """

rule probe:
    output:
        "of_job.json",
    run:
        Path(output[0]).write_text(json.dumps(config))


Path("of_run.json").write_text(json.dumps(config)) if workflow.is_main_process else None
"""


@pytest.mark.skipif(" " in sys.executable, reason="Snakemake does not quote the path of its Python for a `run:`")
def test_a_job_has_the_config_of_the_run(tmp_path):
    """A `run:` directive starts another Snakemake, with the same options that a job on a cluster gets."""
    workflow = copy_workflow(tmp_path / "workflow")
    with (workflow / "Snakefile").open("a") as snakefile:
        snakefile.write(PROBE)
    mine = tmp_path / "mine.yaml"
    mine.write_text("finetune: {learning_rate: 5e-3}\nplots: {colours: {qat: '#000000'}}\n")
    files = ["--configfile", DEMO, mine, "--directory", tmp_path / "run"]
    overrides = [
        "models={mine: {source: standin}}",
        "finetune={arms: {qat: {quantization: int4}}}",
        "variants=[base-bf16, base-int4, qat-int4]",
        "publish={private: false, variant: qat-int4}",
    ]
    result = snakemake("probe", "--cores", 1, *files, "--config", *overrides, workflow=workflow)
    assert result.returncode == 0, result.stderr
    of_run, of_job = (json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("of_run", "of_job"))
    assert of_job == of_run
    assert list(of_job["models"]) == ["mine"]
    assert of_job["finetune"]["arms"] == {"qat": {"quantization": "int4"}}
    assert of_job["publish"]["private"] is False
    assert of_job["plots"]["colours"] == {"base": "#7a7a7a", "qat": "#000000"}
