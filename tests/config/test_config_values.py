"""Config values are read as people mean them, and mistakes that YAML hides are reported as one line each."""

import json
import os

import pytest
import yaml

from configs import CARD, SCHEMA, changed
from int4_qat.config import config_values, workflow_config
from programs import ROOT
from workflows import snakemake


@pytest.mark.parametrize(
    ("path", "written", "meant"),
    [
        (["finetune", "learning_rate"], "1e-3", 0.001),
        (["finetune", "learning_rate"], "1E-3", 0.001),
        (["finetune", "learning_rate"], "1.0e3", 1000),
        (["finetune", "weight_decay"], "0.0", 0),
        (["finetune", "r"], "8.0", 8),
        (["finetune", "r"], "8e0", 8),
        (["finetune", "arms", "qat", "learning_rate"], "2e-5", 0.00002),
        (["quantizations", "w4a16", "group_size"], "128.0", 128),
        (["evaluation", "mmlu", "limit"], "1e2", 100),
        (["evaluation", "tasks", 0, "num_fewshot"], "25.0", 25),
        (["evaluation", "latency", "batch_sizes"], "[1.0, 8e0]", [1, 8]),
        (["publish", "thresholds", "lost_at_most"], "2e-2", 0.02),
        (["publish", "private"], "yes", True),
        (["finetune", "gradient_checkpointing"], "off", False),
    ],
)
def test_what_people_write_is_what_they_mean(path, written, meant):
    """How a number is written does not change the arguments of jobs, so it does not make them re-run."""
    config = changed(path, yaml.safe_load(written))
    config_values.normalise(config, SCHEMA)
    expected = changed(path, meant)
    config_values.normalise(expected, SCHEMA)
    assert json.dumps(config) == json.dumps(expected)
    place = config
    for key in path:
        place = place[key]
    assert json.dumps(place) == json.dumps(meant)
    assert workflow_config.problems(config, SCHEMA) == []


def test_texts_stay_texts():
    """A license or the mark of a turn may look like a number."""
    config = changed(["publish", "license"], "1e3")
    config["finetune"]["response_part"] = "7"
    config_values.normalise(config, SCHEMA)
    assert (config["publish"]["license"], config["finetune"]["response_part"]) == ("1e3", "7")


@pytest.mark.parametrize(
    "path",
    [
        ["models", "gemma-3-12b-it", "source"],
        ["data", "source"],
        ["evaluation", "tasks", 0, "source"],
        ["evaluation", "chartqa", "source"],
    ],
)
def test_a_tilde_and_variables_stand_for_folders(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", str(tmp_path))
    (tmp_path / "m").mkdir()
    for written in ("~/m", "$MINE/m", "${MINE}/m"):
        config = changed(path, written)
        config_values.normalise(config, SCHEMA)
        assert config == changed(path, str(tmp_path / "m"))
        assert workflow_config.problems(config, SCHEMA) == []


def test_a_folder_may_have_a_dollar_in_its_name(tmp_path):
    (tmp_path / "$HOME").mkdir()
    config = changed(["data", "source"], str(tmp_path / "$HOME"))
    config_values.normalise(config, SCHEMA)
    assert config["data"]["source"] == str(tmp_path / "$HOME")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2: expected each key once, found 'c' twice"),
        ("a: 1\nb: 2\na: 3\n", "line 3: expected each key once, found 'a' twice"),
        ("a: [1, {b: 010}]\n", "line 1: expected a plain number, found 010 (8 in YAML)"),
        ("a: 1:30\n", "line 1: expected a plain number, found 1:30 (90 in YAML)"),
    ],
)
def test_what_yaml_hides_is_found_in_the_file(tmp_path, text, expected):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert list(config_values.hidden_problems(path)) == [f"{path}, {expected}"]


def test_yaml_that_hides_nothing_passes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        'a: &a {b: 0, c: 10, d: 0.5, e: "010", f: 1.0e-3, g: 0x10}\nh: {<<: *a, b: 1}\ni: *a\n? [1, 2]\n: 3\n'
    )
    assert list(config_values.hidden_problems(path)) == []


def run_with(tmp_path, text, *arguments):
    """Return the result of a dry run with a config file of the given content, and the file's path."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = snakemake("--dry-run", "--directory", tmp_path / "run", *arguments, "--configfile", path)
    return result, path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text + "device: cuda\n", "mine.yaml, line {lines}: expected each key once, found 'device' twice"),
        (lambda text: text.replace("  seed: 3407", "  seed: 010"), ": expected a plain number, found 010 (8 in YAML)"),
        (
            lambda text: text.replace("  gemma-3-12b-it:", "  no:"),
            "models: expected strings as keys, found False; put it",
        ),
    ],
)
def test_snakemake_looks_into_the_file_too(tmp_path, change, expected):
    text = change((ROOT / "config.yaml").read_text())
    result, _ = run_with(tmp_path, text)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("config error: "))
    assert expected.format(lines=len(text.splitlines())) in line


def test_the_jobs_get_what_is_meant(tmp_path):
    """Values from a file and from --config reach the jobs normalised: floats, whole numbers, expanded tildes."""
    (tmp_path / "m").mkdir()
    text = (ROOT / "config.yaml").read_text().replace("learning_rate: 2.0e-5", "learning_rate: 2e-5")
    text = text.replace("  r: 8\n", "  r: 8.0\n").replace(CARD["models"]["gemma-3-12b-it"]["source"], "~/m")
    environment = os.environ | {"HOME": str(tmp_path)}
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    options = ["--config", "data={source: ~/m}", "--directory", tmp_path / "run", "--configfile", path]
    result = snakemake("--dry-run", "--printshellcmds", *options, env=environment)
    assert result.returncode == 0, result.stderr
    assert '"learning_rate": 2e-05' in result.stdout
    assert '"r": 8,' in result.stdout
    assert f"download_mmlu.py --source={tmp_path}/m " in result.stdout.replace("'", "")
    assert f"download_model.py --source={tmp_path}/m " in result.stdout.replace("'", "")
