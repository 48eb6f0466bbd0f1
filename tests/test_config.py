"""A wrong config is one line that names the key."""

import copy
import datetime
import json
import math
import os

import pytest
import yaml

from int4_qat import config_values, workflow_config
from programs import ROOT
from workflows import snakemake

SCHEMA = yaml.safe_load((ROOT / "rules" / "config.schema.yaml").read_text())
CARD = yaml.safe_load((ROOT / "config.yaml").read_text())
DEMO = yaml.safe_load((ROOT / "profiles" / "demo" / "demo.yaml").read_text())
MERGED = {"qat_scheme": "int4", "qat_target": "merged", "backend": "transformers"}


def changed(path, value):
    config = copy.deepcopy(CARD)
    *parents, key = path
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    return config


@pytest.mark.parametrize("config", [CARD, DEMO])
def test_the_shipped_configs_are_right(config):
    assert workflow_config.problems(config, SCHEMA) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["finetune", "learning_rat"], 1e-3, "learning_rat"),
        (["finetune", "arms", "qat", "learning_rat"], 1e-3, "finetune.arms.qat"),
        (["finetune", "learning_rate"], "fast", "finetune.learning_rate: 'fast' is not of type 'number'"),
        (["finetune", "max_steps"], 0, "finetune.max_steps: 0 is less than the minimum of 1"),
        (["finetune", "arms", "qat", "qat_scheme"], "int3", "finetune.arms.qat.qat_scheme: 'int3' is not one of"),
        (["quantization", "group_size"], 100, "quantization.group_size: 100 is not one of"),
        (["quantization", "scheme"], "int2", "quantization.scheme: 'int2' is not one of ['int4']"),
        (["data", "source"], "hf://datasets/cais/mmlu@main", "data.source"),
        (["data", "source"], "resources/mine", "data.source: the workflow writes to 'resources'; keep"),
        (["data", "source"], "/no/such/folder", "data.source: expected an existing folder, found none at"),
        (["models", "gemma-3-12b-it", "source"], "/no/model", "models.gemma-3-12b-it.source: expected an existing"),
        (["data", "source"], "standin", "data.source: is 'standin', but the config has no section 'standin'"),
        (["variants"], ["base-bf16", "base-int4", "dpo-int4"], "variants[2]: nothing produces 'dpo-int4'"),
        (["variants"], ["base-bf16", "qat-int4"], "variants: 'base-int4' is missing"),
        (["plots", "colours", "qat"], "blue", "plots.colours.qat: 'blue' does not match"),
        (["evaluation", "latency", "batch_sizes"], [], "evaluation.latency.batch_sizes: []"),
        (["evaluation", "latency", "engine"], "tgi", "evaluation.latency.engine: 'tgi' is not one of"),
        (["evaluation", "serving", "concurrency"], [0], "evaluation.serving.concurrency[0]: 0 is less than"),
        (["publish", "variant"], "qat-bf16", "publish.variant: 'qat-bf16' is not one of the int4 variants"),
        (["publish", "repository"], "int4", "publish.repository: 'int4' does not match"),
        (["evaluation", "tasks", 0, "metric"], "acc_norm", "evaluation.tasks[0].metric: 'acc_norm' does not match"),
        (["evaluation", "tasks"], CARD["evaluation"]["tasks"] * 2, "evaluation.tasks[1].task: 'arc_challenge' is in"),
        (["evaluation", "tasks", 0, "source"], "/no/arc", "evaluation.tasks[0].source: expected an existing folder"),
        (["evaluation", "chartqa", "source"], "/no/charts", "evaluation.chartqa.source: expected an existing folder"),
        (["evaluation", "tasks", 0, "source"], "standin", "evaluation.tasks[0].source: expected an existing folder"),
        (["evaluation", "tasks", 0, "task"], "mmlu", "evaluation.tasks[0].task: 'mmlu' is measured by a rule of its"),
        (["evaluation", "mmlu", "limit"], 1, "evaluation.mmlu.limit: 1 is less than the minimum of 2"),
        (["models", "gemma-3-12b-it", "source"], CARD["data"]["source"], "expected hf://<owner>/<name>@<commit>"),
        (
            ["data", "source"],
            f"hf://cais/mmlu@{'0' * 40}",
            "data.source: expected hf://datasets/<owner>/<name>@<commit>",
        ),
        (["finetune", "arms", "qat", "logging_steps"], 101, "finetune.arms.qat.logging_steps: 101 is more than max_st"),
        (
            ["quantization", "skip"],
            ["q_proj"],
            "quantization.skip: k_proj, q_proj, v_proj stand there all or not at all",
        ),
        (["finetune", "qat_target"], "merged", "finetune.arms.qat.qat_target: unsloth trains 'base+lora_a', not"),
        (["quantization", "group_size"], 64, "finetune.arms.qat.group_size: unsloth's int4 has groups of 128, not 64"),
        (
            ["finetune", "arms", "qat"],
            MERGED | {"lora_dropout": 0.1},
            "finetune.arms.qat.lora_dropout: expected 0 with",
        ),
        (["evaluation", "mmlu", "num_fewshot"], 6, "evaluation.mmlu.num_fewshot: 6 is greater than"),
        (["plots", "colours", "sft"], "#000000", "plots.colours.sft: expected one of base, lora, qat"),
        (
            ["finetune", "arms", "lora", "qat_target"],
            "base",
            "finetune.arms.lora.qat_target: has no effect in an arm whose qat_scheme is null",
        ),
        (["finetune", "finetune_vision_layers"], True, "finetune.finetune_vision_layers: expected false; no picture"),
        (
            ["finetune", "arms", "qat", "finetune_vision_layers"],
            True,
            "finetune.arms.qat.finetune_vision_layers: expected false",
        ),
        (["finetune", "warmup_steps"], 100, "finetune.warmup_steps: expected fewer than max_steps, 100, found 100"),
        (["finetune", "arms", "qat", "max_steps"], 5, "finetune.arms.qat.warmup_steps: expected fewer than max_steps"),
        (
            ["finetune", "lr_scheduler_type"],
            "constant",
            "finetune.warmup_steps: expected 0 with lr_scheduler_type constant, found 5",
        ),
        (
            ["evaluation", "latency"],
            CARD["evaluation"]["latency"] | {"engine": "transformers", "vllm_arguments": ["--enforce-eager"]},
            "evaluation.latency.vllm_arguments: expected none with engine transformers",
        ),
        (
            ["publish", "thresholds", "accuracy_lost_at_most"],
            1,
            "publish.thresholds.accuracy_lost_at_most: 1 is greater than or equal to the maximum of 1",
        ),
        (["publish", "thresholds", "accuracy_lost_at_most"], -0.1, "accuracy_lost_at_most: -0.1 is less than the min"),
        (["publish", "thresholds", "recovered_at_least"], 1.1, "recovered_at_least: 1.1 is greater than the maximum"),
        (
            ["publish", "repository"],
            "me/{modell}-int4",
            "publish.repository: expected <owner>/<name>, in which {model}",
        ),
        (["finetune", "r"], 8.5, "finetune.r: 8.5 is not of type 'integer'"),
        (["finetune", "r"], True, "finetune.r: True is not of type 'integer'"),
        (["finetune", "max_steps"], -1, "finetune.max_steps: -1 is less than the minimum of 1"),
        (
            ["finetune", "learning_rate"],
            math.nan,
            "learning_rate: nan is not of type 'number'; expected a finite number",
        ),
        (["finetune", "weight_decay"], math.inf, "weight_decay: inf is not of type 'number'; expected a finite number"),
        (["finetune", "learning_rate"], None, "learning_rate: None is not of type 'number'; there is no value"),
        (["finetune", "seed"], 2**32, "finetune.seed: 4294967296 is greater than the maximum of 4294967295"),
        (
            ["publish", "private"],
            "true",
            "publish.private: 'true' is not of type 'boolean'; write true or false, without",
        ),
        (["publish", "license"], False, "publish.license: False is not of type 'string'; put it in quotes"),
        (["publish", "license"], datetime.date(2026, 1, 1), "is not of type 'string'; put it in quotes"),
        (["evaluation", "mmlu", "limit"], "None", "; nothing is written null, without quotes"),
        (
            ["finetune", "arms", "lora", "qat_scheme"],
            "",
            "lora.qat_scheme: '' is not one of ['int4', None]; nothing is",
        ),
        (["quantization", "group_size"], "all", "quantization.group_size: 'all' is not of type 'integer'"),
        (["models", "gemma\n"], CARD["models"]["gemma-3-12b-it"], "models: 'gemma\\n' does not match"),
        (["data", "source"], "/tmp\n", "data.source: expected an existing folder, found none at '/tmp\\n'"),
        (["data", "source"], f"{CARD['data']['source']}\n", "\\n' does not match '^hf://"),
        (["data", "source"], "x" * 5000, "data.source: expected an existing folder, found none at 'xxx"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(path, value, expected):
    problems = workflow_config.problems(changed(path, value), SCHEMA)
    assert len(problems) == 1
    assert expected in problems[0]
    assert "\n" not in problems[0]


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
        (["quantization", "group_size"], "128.0", 128),
        (["evaluation", "mmlu", "limit"], "1e2", 100),
        (["evaluation", "tasks", 0, "num_fewshot"], "25.0", 25),
        (["evaluation", "latency", "batch_sizes"], "[1.0, 8e0]", [1, 8]),
        (["publish", "thresholds", "accuracy_lost_at_most"], "2e-2", 0.02),
        (["publish", "private"], "yes", True),
        (["finetune", "gradient_checkpointing"], "off", False),
    ],
)
def test_what_people_write_is_what_they_mean(path, written, meant):
    """As the number is written has no say in what runs again: the words that jobs are given are the same."""
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
    """A license or a mark of a turn may look like a number."""
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
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2: the key 'c' stands there twice"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' stands there twice"),
        ("a: [1, {b: 010}]\n", "line 1: 010 is 8 in YAML; expected a plain number"),
        ("a: 1:30\n", "line 1: 1:30 is 90 in YAML; expected a plain number"),
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


def test_two_models_do_not_share_a_repository():
    config = changed(["publish", "repository"], "me/int4")
    config["models"]["other"] = config["models"]["gemma-3-12b-it"]
    (problem,) = workflow_config.problems(config, SCHEMA)
    assert problem.startswith("publish.repository: 'me/int4' is that of several models")
    config["publish"]["repository"] = "me/{model}-int4"
    assert workflow_config.problems(config, SCHEMA) == []


def test_snakemake_says_so_before_anything_runs(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(changed(["quantization", "group_size"], 100)))
    result = snakemake("--dry-run", "--configfile", wrong)
    assert result.returncode != 0
    assert "config error: quantization.group_size: 100 is not one of [32, 64, 128, 256]" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_arm_and_model_stands_in_the_plan(tmp_path):
    config = changed(["finetune", "arms", "qat_fast"], {"qat_scheme": "int4", "learning_rate": 1e-4})
    config["models"]["other"] = {"source": CARD["models"]["gemma-3-12b-it"]["source"]}
    config["variants"].append("qat_fast-int4")
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(config))
    plan = snakemake("--dry-run", "--configfile", path, "--directory", tmp_path / "run")
    assert plan.returncode == 0, plan.stderr
    counts = dict(line.split() for line in plan.stdout.splitlines() if len(line.split()) == 2)
    assert (counts["finetune"], counts["evaluate_mmlu"], counts["summarize"]) == ("6", "12", "2")


def run_with(tmp_path, text, *arguments):
    """A dry-run with a config file that holds a text."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    result = snakemake("--dry-run", "--directory", tmp_path / "run", *arguments, "--configfile", path)
    return result, path


def test_a_configfile_without_models_is_not_filled_up_from_the_default(tmp_path):
    """Or the 12B run would begin with some of one's own settings in it."""
    result, _ = run_with(tmp_path, "device: cuda\n")
    assert result.returncode != 0
    lines = result.stderr.splitlines()
    assert "config error: 'models' is a required property" in lines
    assert all(line.startswith(("config error: '", "host: ", "Using profile")) for line in lines), result.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text + "device: cuda\n", "mine.yaml, line {lines}: the key 'device' stands there twice"),
        (lambda text: text.replace("  seed: 3407", "  seed: 010"), ": 010 is 8 in YAML; expected a plain number"),
        (
            lambda text: text.replace("  gemma-3-12b-it:", "  no:"),
            "models: expected texts as keys, found False; put it",
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
    """From a file and from --config: numbers as numbers, whole ones as whole ones, the folder of the tilde."""
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
