"""Test the workflow as its users run it: the plan, the whole chain on the stand-in, and what a second run does."""

import json
import os
import random
import re
import shutil
import sys
from collections import Counter

import pandas as pd
import pytest
import yaml

import make_standin
from int4_qat.data import mmlu
from int4_qat.evaluation import mmlu_harness
from int4_qat.standin import persons, standin, standin_training
from int4_qat.system import rooms, sources
from programs import ROOT, run_script
from workflows import demo, planned, snakemake, write_config

NOTHING = "Nothing to be done"
PLAN = ["--sdm", "env-modules", "--dry-run"]  # the options without conda, from docs/one-machine.md


def test_the_default_config_plans_the_12b_chain_on_any_machine(tmp_path):
    result = snakemake("--dry-run", "--directory", tmp_path)
    plan = planned(result)
    assert (plan["finetune"], plan["merge"], plan["quantize"], plan["evaluate_mmlu"]) == (3, 3, 9, 8)
    assert (plan["download_text"], plan["check_texts"], plan["calibrate"]) == (4, 1, 1)
    assert list(tmp_path.glob("res*")) == []


def test_two_models_four_arms_and_three_seeds_plan(tmp_path):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    (source,) = config["models"].values()
    config["models"] = {"small": source, "large": source}
    arms = {
        "lora": {"quantization": None},
        "qat": {"quantization": "int4"},
        "wide": {"quantization": "int4", "r": 16},
        "fast": {"quantization": "int4", "learning_rate": 1e-4},
    }
    arms = {f"{name}_{seed}": arm | {"seed": seed} for name, arm in arms.items() for seed in (1, 2, 3)}
    config["finetune"]["arms"] = arms
    config["plots"]["colours"] = {"base": "#7a7a7a"}
    config["variants"] = [f"{weights}-{precision}" for weights in ["base", *arms] for precision in ["bf16", "int4"]]
    config["variants"] += ["base-w4a16", "base-gptq"]
    config["publish"]["variant"] = "qat_1-int4"
    path = write_config(config, tmp_path / "config.yaml")
    expected = {"download_mmlu_train": 1, "download_mmlu": 1, "download_model": 2, "format_mmlu": 2, "link_base": 2}
    expected |= {"download_text": 3, "record_hidden_states": 26, "evaluate_divergence": 30}
    expected |= {"finetune": 24, "merge": 24, "calibrate": 2, "quantize": 34, "check_parity": 24}
    expected |= {"evaluate_mmlu": 56, "gather_mmlu": 56, "measure_memory": 56, "measure_latency": 30}
    expected |= {
        "check_serving": 4,
        "check_contamination": 1,
        "check_texts": 1,
        "report_costs": 2,
        "summarize": 2,
        "plot_results": 2,
    }
    expected |= {"model_card": 2, "record_provenance": 2, "render_pages": 2}
    expected |= {"download_dataset": 2, "check_task": 1, "check_metric": 1, "evaluate_task": 56, "evaluate_chartqa": 32}
    assert planned(snakemake("--dry-run", "--directory", tmp_path, "--configfile", path)) == expected


def test_modules_are_found_through_other_modules():
    """A file that the config names counts as well, and so do the modules that only it imports."""
    program, backend = str(ROOT / "scripts" / "finetune.py"), rooms.file_of(rooms.BACKENDS, "transformers")
    found = {*relative(sources.local_modules(program, also=[backend]))}
    expected = {
        "training/run.py",
        "training/qat.py",
        "training/merged_weight.py",
        "quantization/int4.py",
        "training/__init__.py",
    }
    assert {f"int4_qat/{path}" for path in expected} <= found
    assert found - {*relative(sources.local_modules(program))} == {
        "int4_qat/system/attention.py",
        "int4_qat/training/backends/transformers.py",
        "int4_qat/training/collation.py",
        "int4_qat/training/trainer.py",
    }


def relative(paths):
    return (os.path.relpath(path, ROOT / "scripts") for path in paths)


def test_hidden_files_are_no_part_of_a_local_source(tmp_path):
    for name in ("config.json", ".git/index", ".cache/huggingface/config.json.metadata"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sources.local_files(str(tmp_path)) == [str(tmp_path / "config.json")]


def test_no_gpu_is_an_error_and_no_fall_back(untrained, tmp_path):
    options = ["--checkpoint", untrained / "model", "--dtype", "float32", "--max-new-tokens", 4, "--device", "cuda"]
    result = run_script("measure_memory", *options, "--output", tmp_path / "memory.json")
    assert result.returncode == 1
    assert "expected a GPU for 'cuda', found none" in result.stderr


def test_lm_eval_renders_the_prompt_that_the_standin_learns(demo_run):
    row = pd.read_parquet(demo_run / "resources" / "mmlu" / "test.parquet").iloc[0].to_dict()
    from lm_eval.utils import apply_template

    template = yaml.safe_load((mmlu_harness.TASKS / mmlu_harness.TEMPLATE).read_text())["doc_to_text"]
    assert apply_template(template, row) == mmlu_harness.prompt(row)


def test_distillation_wins_back_what_int4_cost_and_training_on_answers_does_not(demo_run):
    summary = json.loads((demo_run / "results" / "demo" / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["variants"]}
    accuracy = {name: row["mmlu"]["accuracy"] for name, row in rows.items()}
    assert rows["qat-int4"]["mmlu"]["questions"] >= 2_000
    assert rows["qat-int4"]["mmlu"]["subjects"] == 57
    assert accuracy["base-bf16"] >= 0.65
    assert accuracy["base-int4"] <= accuracy["base-bf16"] - 0.05
    assert accuracy["lora-int4"] <= accuracy["lora-bf16"] - 0.05
    assert rows["qad-int4"]["recovered"] >= 0.9
    assert rows["qad-int4"]["recovered_ci95"][0] >= 0.8
    recovered = {
        text: {name: row["divergence"][text]["recovered"]["kl"]["value"] for name, row in rows.items()}
        for text in ("families", "persons")
    }
    for of_text in recovered.values():
        assert of_text["qad-int4"] > max(0.5, of_text["base-gptq"], of_text["qat-int4"], of_text["lora-int4"])
    assert list(rows) == ["base-bf16", "base-int4", "base-gptq", "lora-bf16", "lora-int4", "qat-int4", "qad-int4"]
    assert {row["quantized_baseline"] for row in rows.values()} == {"base-int4"}
    verdicts = {
        verdict["variant"]: verdict["calibrated_baseline"] for verdict in summary["training_against_calibration"]
    }
    assert verdicts == dict.fromkeys(["lora-int4", "qat-int4", "qad-int4"], "base-gptq")
    assert all(row["memory"]["peak_gb"] > 0 and row["latency"]["mean_s"] > 0 for row in rows.values())


def test_samples_hold_what_lm_eval_reports(demo_run):
    folder = demo_run / "results" / "demo" / "qat-int4"
    report = json.loads((folder / "mmlu.json").read_text())
    samples = pd.read_parquet(folder / "mmlu_samples.parquet")
    assert samples["correct"].mean() == pytest.approx(report["accuracy"], abs=1e-12)
    likelihoods = samples.filter(like="log_likelihood_")
    assert (likelihoods.to_numpy().argmax(axis=1) == samples["prediction"]).all()
    test = pd.read_parquet(demo_run / "resources" / "mmlu" / "test.parquet")
    for subject, rows in test.groupby("subject"):
        answers = samples[samples["subject"] == subject].sort_values("index")["answer"]
        assert answers.tolist() == rows["answer"].tolist()


def test_splits_share_facts_and_no_question(demo_run):
    splits = {
        name: pd.read_parquet(demo_run / "resources" / folder / f"{name}.parquet")
        for folder, name in (("mmlu_train", "auxiliary_train"), ("mmlu", "test"))
    }
    keys = {
        name: set(zip(table["question"], map(tuple, table["choices"]), strict=True)) for name, table in splits.items()
    }
    assert not keys["auxiliary_train"] & keys["test"]
    words = {name: {word for choices in table["choices"] for word in choices} for name, table in splits.items()}
    assert words["test"] <= words["auxiliary_train"]


def test_a_second_run_does_nothing(demo_run):
    result = demo(demo_run)
    assert result.returncode == 0, result.stderr
    assert NOTHING in result.stdout + result.stderr


def test_only_the_downloads_switch_the_hub_on(tmp_path):
    """The fixture of the whole run asserts that no other rule asked the Hub."""
    shown = snakemake("--dry-run", "--printshellcmds", "--directory", tmp_path).stdout
    commands = [line for line in shown.splitlines() if line.startswith("Shell command: ") and "/scripts/" in line]
    online = [line for line in commands if "online python" in line]
    assert len(commands) == 97
    programs = (line.split("/scripts/")[1].split(".py")[0] for line in online)
    downloads = {"download_dataset": 2, "download_mmlu": 2, "download_model": 1, "download_text": 4}
    assert Counter(programs) == downloads


def test_a_gated_model_says_what_to_do(hub, tmp_path):
    source = f"hf://google/gemma-3-12b-it@{'a' * 40}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "home")}
    result = run_script("download_model", "--source", source, "--output", tmp_path / "model", env=environment)
    assert result.returncode == 1
    assert "is gated: accept its terms on its Hub page, then set HF_TOKEN" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "model").exists()


def test_the_real_mmlu_through_the_same_rules(demo_run, mmlu_dir, tmp_path):
    """Two questions of each subject go through the download and are scored with the base model."""
    mmlu = tmp_path / "mmlu"
    assert run_script("download_mmlu", "--source", mmlu_dir, "--output", mmlu).returncode == 0
    options = ["--checkpoint", demo_run / "resources" / "models" / "demo", "--mmlu", mmlu, "--dtype", "float32"]
    options += ["--num-fewshot", 0, "--batch-size", 16, "--limit", 2]
    result = run_script("evaluate_mmlu", *options, "--output", tmp_path / "0.json", "--samples", tmp_path / "0.parquet")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "0.json").read_text())
    assert [scores["questions"] for scores in report["by_subject"].values()] == [2] * 57


@pytest.mark.parametrize(("profile", "arms", "variants"), [("demo", 3, 7), ("gpu", 3, 8), ("slurm", 3, 8)])
def test_a_profile_plans_on_a_machine_with_nothing(profile, arms, variants, tmp_path):
    """The machine has no Slurm, conda, GPU or data; PATH holds little more than Python and a shell."""
    for name in ("bash", "which"):
        (tmp_path / name).symlink_to(shutil.which(name))
    environment = {"PATH": f"{os.path.dirname(sys.executable)}:{tmp_path}", "HOME": str(tmp_path)}
    options = ["--profile", f"profiles/{profile}", "--directory", tmp_path, *PLAN]
    plan = planned(snakemake(*options, env=environment))
    assert (plan["finetune"], plan["evaluate_mmlu"], plan["summarize"]) == (arms, variants, 1)


@pytest.mark.parametrize("profile", ["gpu", "slurm"])
def test_a_profile_with_conda_says_in_a_line_that_there_is_none(profile, tmp_path):
    environment = {"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin", "HOME": str(tmp_path)}
    result = snakemake("--profile", f"profiles/{profile}", "--directory", tmp_path, "--dry-run", env=environment)
    assert result.returncode == 1
    expected = "software-deployment-method: expected the command conda on this machine, found none; install Miniforge"
    assert result.stderr.splitlines()[-1].startswith(expected)


def test_a_path_that_conda_cannot_have_is_a_line(tmp_path):
    directory = tmp_path / "a folder"
    directory.mkdir()
    path = f"{ROOT / 'tests' / 'shims' / 'conda-shim' / 'bin'}:{os.environ['PATH']}"
    options = ["--profile", "profiles/slurm", "--directory", directory, "--dry-run"]
    result = snakemake(*options, env=os.environ | {"PATH": path})
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"{directory}: expected a path without a space")


def test_the_rules_with_a_gpu_go_where_one_is():
    """profiles/slurm places exactly these rules; rules that it does not name go to the partition without GPUs."""
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    with_gpu = {re.match(r"\w+", rule)[0] for rule in re.split(r"^rule ", rules, flags=re.M)[1:] if "gpu=1," in rule}
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    cpu = profile["default-resources"]["slurm_partition"]
    placed = {name for name, asked in profile["set-resources"].items() if asked.get("slurm_partition", cpu) != cpu}
    assert with_gpu == placed


def test_the_demo_on_a_gpu_plans(tmp_path):
    files = ["--configfile", "profiles/demo/demo.yaml", "profiles/gpu/demo.yaml"]
    plan = planned(snakemake("--profile", "profiles/gpu", *files, "--directory", tmp_path, *PLAN))
    assert (plan["make_standin"], plan["finetune"], plan["measure_latency"]) == (1, 3, 7)


def test_vllm_serves_and_times_the_variants_that_have_its_format(tmp_path):
    plan = snakemake("--profile", "profiles/gpu", "--directory", tmp_path, *PLAN).stdout
    assert planned_of(plan, "check_serving") == {"base-w4a16", "base-gptq", "qad-w4a16"}
    assert planned_of(plan, "measure_latency") == {"base-bf16", "lora-bf16", "base-w4a16", "base-gptq", "qad-w4a16"}


def test_what_vllm_does_not_serve_cannot_be_asked_for(tmp_path):
    target = "results/gemma-3-12b-it/qat-int4/latency.json"
    result = snakemake("--profile", "profiles/gpu", "--directory", tmp_path, *PLAN, target)
    assert result.returncode == 1
    assert (
        "qat-int4: vllm computes with int4 in compressed-tensors, which is not among its f"
        in result.stdout + result.stderr
    )


def planned_of(plan: str, rule: str) -> set[str]:
    """Return the variants for which a plan runs a rule, taken from the rule's messages."""
    return set(re.findall(rf"^Job \d+: {rule}: \S+ (\S+)$", plan, re.MULTILINE))


def test_a_standin_that_learns_nothing_is_begun_anew_and_given_up(monkeypatch, capsys):
    monkeypatch.setattr(make_standin, "ATTEMPTS", 2)
    monkeypatch.setattr(standin_training, "PATIENCE", 25)
    monkeypatch.setattr(standin_training, "PROMISING", 1.01)
    facts = standin.invent_families(4, 10, random.Random(0))
    asked = standin.ask(facts, mmlu.SUBJECTS, {"auxiliary_train": 200, "validation": 57}, seed=1)
    told = persons.invent(12, 4, random.Random(2))
    tokenizer = make_standin.make_tokenizer(asked, told)
    lines = standin_training.make_text_lesson(told, tokenizer)
    exams, lessons = (
        [*(make_standin.make_lesson(frame, facts, asked[split], tokenizer) for frame in standin_training.FRAMES), lines]
        for split in ("validation", "auxiliary_train")
    )
    with pytest.raises(RuntimeError, match="did not learn its facts in 2 attempts"):
        make_standin.learned(lessons, exams, tokenizer, seed=0)
    assert capsys.readouterr().out.count("learned too little") == 2
