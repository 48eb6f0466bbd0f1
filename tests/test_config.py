"""A wrong config is one line that names the key."""

import copy

import pytest
import yaml

from int4_qat import workflow_config
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
    ],
)
def test_each_mistake_is_one_line_that_names_the_key(path, value, expected):
    problems = workflow_config.problems(changed(path, value), SCHEMA)
    assert len(problems) == 1
    assert expected in problems[0]
    assert "\n" not in problems[0]


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
