"""Each mistake in a config is reported as one line that names the key."""

import datetime
import math

import pytest
import yaml

from configs import CARD, SCHEMA, changed, demo_config, resolved
from int4_qat.config import workflow_config
from programs import ROOT
from workflows import snakemake

MERGED = {"quantization": "int4", "qat_target": "merged", "backend": "transformers"}
DISTILLED = {"distillation": {"weight": 1, "tokens": "all", "temperature": 1}}
OWN = {
    "name": "own",
    "source": str(ROOT / "tests"),
    "engine": "stock",
    "num_fewshot": 0,
    "limit": None,
    "batch_size": 8,
    "dtype": "bfloat16",
}
DEMO_ON_GPU = [ROOT / "profiles" / folder / "demo.yaml" for folder in ("demo", "gpu")]


@pytest.mark.parametrize(
    "config", [CARD, demo_config(), resolved(*DEMO_ON_GPU)], ids=["default", "demo", "demo on a GPU"]
)
def test_the_shipped_configs_are_right(config):
    assert workflow_config.problems(config, SCHEMA) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (["finetune", "learning_rat"], 1e-3, "learning_rat"),
        (["finetune", "arms", "qat", "learning_rat"], 1e-3, "finetune.arms.qat"),
        (["finetune", "learning_rate"], "fast", "finetune.learning_rate: expected a number, found 'fast'"),
        (["finetune", "max_steps"], 0, "finetune.max_steps: 0 is less than the minimum of 1"),
        (
            ["finetune", "arms", "base"],
            {"quantization": None},
            "finetune.arms: expected a name other than base, the",
        ),
        (["finetune", "quantization"], "int4", "finetune: expected keys that exist, found 'quantization'"),
        (["data", "source"], "hf://datasets/cais/mmlu@main", "data.source"),
        (["data", "source"], "resources/mine", "data.source: expected a folder outside 'resources', to"),
        (
            ["data", "source"],
            "/",
            "data.source: expected a folder that does not hold the run or its results, found '/'",
        ),
        (["data", "source"], "/no/such/folder", "data.source: expected an existing folder, found none at"),
        (["data", "source"], "/etc/passwd", "expected an existing folder, found something else at '/etc/passwd'"),
        (["data", "source"], "cais/mmlu", "expected an existing folder, or hf://datasets/<owner>/<name>@<commit>, fou"),
        (["models", "gemma-3-12b-it", "source"], "/no/model", "models.gemma-3-12b-it.source: expected an existing"),
        (["data", "source"], "standin", "data.source: expected a section 'standin' in the config"),
        (["variants"], ["base-bf16", "base-int4", "dpo-int4"], "variants[2]: expected <base or lora or qat or qad>-"),
        (["variants"], ["base-bf16", "qat-int4"], "variants: expected 'base-int4', against which"),
        (["plots", "colours", "qat"], "blue", "plots.colours.qat: expected #rrggbb, found 'blue'"),
        (["evaluation", "latency", "batch_sizes"], [], "evaluation.latency.batch_sizes: []"),
        (
            ["evaluation", "latency", "engine"],
            "tgi",
            "evaluation.latency.engine: expected one of",
        ),
        (["evaluation", "serving", "concurrency"], [0], "evaluation.serving.concurrency[0]: 0 is less than"),
        (["publish", "variant"], "qat-bf16", "publish.variant: expected one of base-int4"),
        (["publish", "repository"], "int4", "publish.repository: expected <owner>/<name>, in which {model} stan"),
        (
            ["evaluation", "tasks", 0, "metric"],
            "acc_norm",
            "evaluation.tasks[0].metric: expected <metric>,<filter>, as",
        ),
        (["evaluation", "tasks"], CARD["evaluation"]["tasks"] * 2, "evaluation.tasks[1].task: expected a name that"),
        (["evaluation", "tasks", 0, "source"], "/no/arc", "evaluation.tasks[0].source: expected an existing folder"),
        (["evaluation", "chartqa", "source"], "/no/charts", "evaluation.chartqa.source: expected an existing folder"),
        (["evaluation", "tasks", 0, "source"], "standin", "evaluation.tasks[0].source: expected an existing folder"),
        (["evaluation", "tasks", 0, "task"], "mmlu", "evaluation.tasks[0].task: expected none of divergence, "),
        (["evaluation", "questions"], [OWN, OWN], "evaluation.questions[1].name: expected a name that no other"),
        (["evaluation", "questions"], [OWN | {"name": "arc_challenge"}], "[0].name: expected a name that no other"),
        (["evaluation", "questions"], [OWN | {"name": "mmlu"}], "[0].name: expected none of divergence, "),
        (["evaluation", "questions"], [OWN | {"source": "/no/own"}], "[0].source: expected an existing folder, found"),
        (["evaluation", "questions"], [OWN | {"source": "/no/x.parquet"}], "[0].source: expected an existing file"),
        (["evaluation", "questions"], [OWN | {"name": "wikitext_kl"}], "metrics with different names, found 'wiki"),
        (["evaluation", "questions"], [OWN | {"name": "accuracy"}], "summary.csv's columns, found 'accuracy'"),
        (["evaluation", "questions"], [OWN | {"name": "mmlu_samples"}], "summary.csv's columns, found 'mmlu_samples'"),
        (["evaluation", "headline"], "acc", "evaluation.headline: expected null or one of mmlu, arc_challenge, chart"),
        (["evaluation", "divergence", "texts"], {}, "evaluation.divergence.texts: {}"),
        (["evaluation", "divergence", "texts", "wikitext", "source"], "/no/text", "wikitext.source: expected an exist"),
        (["evaluation", "divergence", "context"], 1, "evaluation.divergence.context: 1 is less than the minimum of 2"),
        (["evaluation", "mmlu", "limit"], 1, "evaluation.mmlu.limit: 1 is less than the minimum of 2"),
        (["models", "gemma-3-12b-it", "source"], CARD["data"]["source"], "expected hf://<owner>/<name>@<commit>"),
        (
            ["data", "source"],
            f"hf://cais/mmlu@{'0' * 40}",
            "data.source: expected hf://datasets/<owner>/<name>@<commit>",
        ),
        (["finetune", "arms", "qat", "logging_steps"], 101, "finetune.arms.qat.logging_steps: expected at most max_st"),
        (["finetune", "qat_target"], "merged", "finetune.arms.qat.qat_target: expected 'base+lora_a' with b"),
        (
            ["finetune", "arms", "qat"],
            MERGED | {"lora_dropout": 0.1},
            "finetune.arms.qat.lora_dropout: expected 0 with",
        ),
        (
            ["finetune", "arms", "qat"],
            MERGED | {"qat_target": "base", "grid_learning_rate": 1e-3},
            "finetune.arms.qat.grid_learning_rate: expected null unless qat_target is merged, found 0.001",
        ),
        (
            ["finetune", "arms", "qat"],
            MERGED | {"packing": True},
            "finetune.arms.qat.packing: expected false without distillation, since only the answers count in the loss",
        ),
        (
            ["finetune", "arms", "qat"],
            MERGED | DISTILLED | {"packing": True, "max_seq_length": 1},
            "finetune.arms.qat.max_seq_length: expected 2 or more with packing, found 1",
        ),
        (
            ["finetune", "arms", "qat"],
            MERGED | DISTILLED | {"texts": {"questions": 1, "wikitext_train": 1}},
            "finetune.arms.qat.texts.wikitext_train: expected only questions without packing, found 'wikitext_train'",
        ),
        (
            ["finetune", "arms", "qat"],
            MERGED
            | {"distillation": {"weight": 1, "tokens": "response", "temperature": 1}}
            | {"texts": {"wikitext_train": 1}, "packing": True},
            "finetune.arms.qat.distillation.tokens: expected all, since 'wikitext_train' has no responses, found respo",
        ),
        (
            ["finetune", "arms", "qat"],
            MERGED | DISTILLED | {"texts": {"questions": 1e4, "wikitext_train": 1}, "packing": True},
            "finetune.arms.qat.texts.wikitext_train: expected a weight that gives it at least one of 3200 rows",
        ),
        (
            ["finetune", "arms", "qat"],
            MERGED
            | {"distillation": {"weight": 0.5, "tokens": "all", "temperature": 1}}
            | {"texts": {"wikitext_train": 1}, "packing": True},
            "finetune.arms.qat.distillation.weight: expected 1 without questions, since no other text has responses",
        ),
        (
            ["finetune", "distillation"],
            {"weight": 1, "tokens": "all"},
            "expected the key 'temperature', found none",
        ),
        (
            ["finetune", "distillation"],
            {"weight": 0, "tokens": "all", "temperature": 1},
            "weight: 0 is less than or eq",
        ),
        (["finetune", "arms", "qat", "eval_steps"], 10, "finetune.arms.qat.eval_steps: expected null with backend uns"),
        (["evaluation", "mmlu", "num_fewshot"], 6, "evaluation.mmlu.num_fewshot: 6 is greater than"),
        (["plots", "colours", "sft"], "#000000", "plots.colours.sft: expected one of base, lora, qat"),
        (
            ["finetune", "arms", "lora", "qat_target"],
            "base",
            "finetune.arms.lora.qat_target: has no effect in an arm whose quantization is null",
        ),
        (["finetune", "finetune_vision_layers"], True, "finetune.finetune_vision_layers: expected false, since"),
        (
            ["finetune", "arms", "qat", "finetune_vision_layers"],
            True,
            "finetune.arms.qat.finetune_vision_layers: expected false",
        ),
        (
            ["finetune", "arms", "qat", "lr_scheduler_type"],
            "constant",
            "finetune.arms.qat.warmup_steps: expected 0 with lr_scheduler_type constant, found 5",
        ),
        (
            ["evaluation", "latency"],
            CARD["evaluation"]["latency"] | {"engine": "transformers", "vllm_arguments": ["--enforce-eager"]},
            "evaluation.latency.vllm_arguments: expected none with engine transformers",
        ),
        (
            ["evaluation", "serving", "dtype"],
            "float32",
            "evaluation.serving.dtype: expected bfloat16, in which vLLM computes with int4, found float32",
        ),
        (
            ["publish", "thresholds", "lost_at_most"],
            1,
            "publish.thresholds.lost_at_most: expected less than 1, since mmlu is a share, found 1",
        ),
        (["publish", "thresholds", "lost_at_most"], -0.1, "lost_at_most: -0.1 is less than the min"),
        (["publish", "thresholds", "recovered_at_least"], 1.1, "recovered_at_least: 1.1 is greater than the maximum"),
        (
            ["publish", "repository"],
            "me/{modell}-int4",
            "publish.repository: expected <owner>/<name>, in which only {model}",
        ),
        (["finetune", "r"], 8.5, "finetune.r: expected a whole number, found 8.5"),
        (["finetune", "r"], True, "finetune.r: expected a whole number, found True"),
        (["finetune", "max_steps"], -1, "finetune.max_steps: -1 is less than the minimum of 1"),
        (
            ["finetune", "learning_rate"],
            math.nan,
            "learning_rate: expected a number, found nan; it must be finite",
        ),
        (["finetune", "weight_decay"], math.inf, "weight_decay: expected a number, found inf; it must be finite"),
        (["finetune", "learning_rate"], None, "learning_rate: expected a number, found None; there is no value"),
        (["finetune", "seed"], 2**32, "finetune.seed: 4294967296 is greater than the maximum of 4294967295"),
        (
            ["publish", "private"],
            "true",
            "publish.private: expected true or false, found 'true'; write true or false, without",
        ),
        (["publish", "license"], False, "publish.license: expected a text, found False; put it in quotes"),
        (
            ["publish", "license"],
            datetime.date(2026, 1, 1),
            "found datetime.date(2026, 1, 1); put it in quotes",
        ),
        (["evaluation", "mmlu", "limit"], "None", "; nothing is written null, without quotes"),
        (
            ["finetune", "arms", "lora", "quantization"],
            "",
            "lora.quantization: expected null or one of int4, w4a16, found ''",
        ),
        (["models", "gemma\n"], CARD["models"]["gemma-3-12b-it"], "models: expected a name of letters, digits, "),
        (["data", "source"], "/tmp\n", "data.source: expected an existing folder, found none at '/tmp\\n'"),
        (
            ["data", "source"],
            f"{CARD['data']['source']}\n",
            "data.source: expected hf://[datasets/]<owner>/<name>@<40-di",
        ),
        (["data", "source"], "x" * 5000, "data.source: expected an existing folder, found none at 'xxx"),
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
    assert problem.startswith("publish.repository: expected '{model}' in it, for several models")
    config["publish"]["repository"] = "me/{model}-int4"
    assert workflow_config.problems(config, SCHEMA) == []


def test_snakemake_says_so_before_anything_runs(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("finetune: {max_steps: 0}\n")
    result = snakemake("--dry-run", "--configfile", wrong)
    assert result.returncode != 0
    assert "config error: finetune.max_steps: 0 is less than the minimum of 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_arm_and_model_stands_in_the_plan(tmp_path):
    config = changed(["finetune", "arms", "qat_fast"], {"quantization": "int4", "learning_rate": 1e-4})
    config["models"]["other"] = {"source": CARD["models"]["gemma-3-12b-it"]["source"]}
    config["variants"].append("qat_fast-int4")
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(config))
    plan = snakemake("--dry-run", "--configfile", path, "--directory", tmp_path / "run")
    assert plan.returncode == 0, plan.stderr
    counts = dict(line.split() for line in plan.stdout.splitlines() if len(line.split()) == 2)
    assert (counts["finetune"], counts["evaluate_mmlu"], counts["summarize"]) == ("8", "18", "2")


def test_a_source_is_refused_by_whichever_path_leads_into_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resources" / "texts").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "resources")
    for source in ("resources/texts", str(tmp_path / "resources" / "texts"), "link/texts"):
        (line,) = workflow_config.problems(changed(["data", "source"], source), SCHEMA)
        expected = "expected a folder outside 'resources', to which the workflow writes"
        assert line == f"data.source: {expected}, found '{source}'"
    (line,) = workflow_config.problems(changed(["data", "source"], "."), SCHEMA)
    assert line == "data.source: expected a folder that does not hold the run or its results, found '.'"
