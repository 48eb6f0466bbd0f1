"""One thing is changed on a finished run: a dry-run plans what depends on it, and nothing else."""

import os

import pytest
import yaml

from workflows import planned, write_config

pytestmark = pytest.mark.slow

RECORDED = {"record_provenance": 1, "render_pages": 1}
CARD = {"model_card": 1} | RECORDED
PLOTTED = {"plot_results": 1} | RECORDED
SUMMARIZED = {"summarize": 1} | PLOTTED | CARD
SUMMARY = {"report_costs": 1} | SUMMARIZED
MEASURED = {"evaluate_mmlu": 5, "gather_mmlu": 5, "measure_memory": 5, "measure_latency": 5} | SUMMARY
INT4 = {"evaluate_mmlu": 3, "gather_mmlu": 3, "measure_memory": 3, "measure_latency": 3} | SUMMARY
PARITY = {"check_parity": 2}
QUANTIZED = {"quantize": 3} | PARITY | INT4
MERGED = {"merge": 2, "quantize": 2} | PARITY | INT4
TRAINED = {"finetune": 2} | MERGED
FORMATTED = {"format_mmlu": 1} | TRAINED
ONE_ARM = {"finetune": 1, "merge": 1, "quantize": 1, "check_parity": 1}
ONE_VARIANT = {"evaluate_mmlu": 1, "gather_mmlu": 1, "measure_memory": 1, "measure_latency": 1} | SUMMARY
FROM_MODEL = {"download_model": 1, "link_base": 1, "format_mmlu": 1} | TRAINED | MEASURED | {"quantize": 3}
FROM_DATA = {"download_mmlu": 1, "check_contamination": 1} | FORMATTED | {"evaluate_mmlu": 5, "gather_mmlu": 5}


@pytest.fixture
def edit(small_run):
    """Change files of the finished run; they are put back afterwards, with another time."""
    before = {}

    def change(path, change):
        before[path] = path.read_bytes()
        path.write_bytes(change(before[path]))

    yield change
    for path, content in before.items():
        path.write_bytes(content)


def comment(content):
    return content + b"\n# edited\n"


def test_nothing_changed(small_run):
    assert planned(small_run.snakemake("--dry-run")) == {}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("scripts/make_standin.py", {}),
        ("scripts/download_mmlu.py", FROM_DATA),
        ("scripts/download_model.py", FROM_MODEL),
        ("scripts/format_mmlu.py", FORMATTED),
        ("scripts/finetune.py", TRAINED),
        ("scripts/merge.py", MERGED),
        ("scripts/quantize.py", QUANTIZED),
        ("scripts/check_parity.py", PARITY | SUMMARY),
        ("scripts/evaluate_mmlu.py", {"evaluate_mmlu": 5, "gather_mmlu": 5} | SUMMARY),
        ("scripts/gather_mmlu.py", {"gather_mmlu": 5} | SUMMARY),
        ("scripts/measure_memory.py", {"measure_memory": 5} | SUMMARY),
        ("scripts/measure_latency.py", {"measure_latency": 5} | SUMMARY),
        ("scripts/check_contamination.py", {"check_contamination": 1} | SUMMARIZED),
        ("scripts/report_costs.py", SUMMARY),
        ("scripts/summarize.py", SUMMARIZED),
        ("scripts/plot_results.py", PLOTTED),
        ("scripts/model_card.py", CARD),
        ("scripts/templates/model_card.md.jinja", CARD),
        ("scripts/record_provenance.py", RECORDED),
        ("scripts/render_pages.py", {"render_pages": 1}),
        ("scripts/templates/run.html.jinja", {"render_pages": 1}),
        ("scripts/upload_model.py", {}),
        ("scripts/verify.py", {}),
        ("scripts/int4_qat/statistics.py", SUMMARIZED),
        ("scripts/int4_qat/tables.py", SUMMARIZED),
        ("scripts/int4_qat/int4.py", TRAINED | MEASURED | {"quantize": 3}),
        ("scripts/int4_qat/qat.py", TRAINED),
        ("scripts/int4_qat/adapters.py", MERGED),
        ("scripts/int4_qat/model_folder.py", FROM_MODEL),
        ("scripts/int4_qat/requirements.py", {}),
        ("scripts/int4_qat/tokenizer_check.py", {}),
        ("scripts/int4_qat/model_facts.py", {}),
        ("scripts/int4_qat/turns.py", TRAINED),
        ("scripts/int4_qat/int4_files.py", QUANTIZED | {"measure_latency": 5}),
        ("scripts/int4_qat/parity.py", TRAINED | {"quantize": 3} | {name: 4 for name in INT4 if name not in SUMMARY}),
        ("scripts/int4_qat/training_callbacks.py", TRAINED),
        ("scripts/int4_qat/checkpoints.py", TRAINED),
        ("scripts/int4_qat/sft_trainer.py", TRAINED),
        ("scripts/int4_qat/standin_training.py", {}),
        ("scripts/int4_qat/mmlu_harness.py", {"evaluate_mmlu": 5, "gather_mmlu": 5} | SUMMARY),
        (
            "scripts/int4_qat/scratch.py",
            TRAINED | {"quantize": 2, "evaluate_mmlu": 5, "gather_mmlu": 5, "measure_latency": 5},
        ),
        ("scripts/int4_qat/scoring.py", {"evaluate_mmlu": 5, "gather_mmlu": 5} | SUMMARY),
        ("scripts/int4_qat/vllm_process.py", {"measure_latency": 5} | SUMMARY),
        ("scripts/int4_qat/engine_process.py", {"measure_latency": 5} | SUMMARY),
        ("scripts/vllm_plugin/mslk_shapes.py", {"measure_latency": 5} | SUMMARY),
        ("scripts/int4_qat/workflow_config.py", {}),
        ("envs/finetune.yaml", {}),  # with --sdm conda: test_environments.py
        ("Snakefile", {}),
        ("rules/finetune.smk", {}),
        ("profiles/demo/config.yaml", {}),
    ],
)
def test_an_edited_file(small_run, edit, path, expected):
    edit(small_run.workflow / path, comment)
    assert planned(small_run.snakemake("--dry-run")) == expected


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("standin.seed", 1, {}),
        ("finetune.learning_rate", 1e-4, TRAINED),
        (
            "finetune.arms.lora.learning_rate",
            1e-4,
            ONE_ARM | ONE_VARIANT | {k: 2 for k in ONE_VARIANT if k not in SUMMARY},
        ),
        ("finetune.arms.qat.learning_rate", 1e-4, ONE_ARM | ONE_VARIANT),
        ("quantization.group_size", 32, QUANTIZED | {"finetune": 1, "merge": 1}),
        ("quantization.skip", ["lm_head"], QUANTIZED | {"finetune": 1, "merge": 1}),
        ("evaluation.mmlu.num_fewshot", 1, {"evaluate_mmlu": 5, "gather_mmlu": 5} | SUMMARY),
        ("evaluation.mmlu.engine", "stock", {"evaluate_mmlu": 5, "gather_mmlu": 5} | SUMMARY),
        ("evaluation.mmlu.shards", 2, {"evaluate_mmlu": 10, "gather_mmlu": 5} | SUMMARY),
        ("evaluation.memory.max_new_tokens", 5, {"measure_memory": 5} | SUMMARY),
        ("plots.colours.qat", "#009E73", PLOTTED),
        ("evaluation.latency.batch_sizes", [1, 2], {"measure_latency": 5} | SUMMARY),
        ("evaluation.latency.repeats", 3, {"measure_latency": 5} | SUMMARY),
        ("variants", ["base-bf16", "base-int4", "qat-int4"], SUMMARY),
        ("publish.license", "mit", CARD),
        ("publish.thresholds.recovered_at_least", 0.5, {}),
    ],
)
def test_a_changed_key(small_run, tmp_path, key, value, expected):
    config = yaml.safe_load(small_run.config.read_text())
    *parents, last = key.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[last] = value
    result = small_run.snakemake("--dry-run", "--configfile", write_config(config, tmp_path / "config.yaml"))
    assert planned(result) == expected


def test_a_new_arm_runs_its_own_chain_alone(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    config["finetune"]["arms"]["slow"] = {"qat_scheme": "int4", "learning_rate": 1e-4}
    config["variants"].append("slow-int4")
    result = small_run.snakemake("--dry-run", "--configfile", write_config(config, tmp_path / "config.yaml"))
    assert planned(result) == ONE_ARM | ONE_VARIANT


def test_a_new_task_is_evaluated_on_every_variant(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    settings = {"metric": "acc_norm,none", "num_fewshot": 25, "limit": None, "batch_size": 8, "dtype": "float32"}
    config["evaluation"]["tasks"] = [{"task": "arc_challenge", "source": str(small_run.standin)} | settings]
    result = small_run.snakemake("--dry-run", "--configfile", write_config(config, tmp_path / "config.yaml"))
    assert planned(result) == {"download_dataset": 1, "check_task": 1, "check_metric": 1, "evaluate_task": 5} | SUMMARY


def test_the_order_of_keys_is_no_change(small_run, tmp_path):
    def turned(value):
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    config = turned(yaml.safe_load(small_run.config.read_text()))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    assert planned(small_run.snakemake("--dry-run", "--configfile", path)) == {}


def test_a_raw_file_with_other_content(small_run, edit):
    raw = small_run.standin / "mmlu" / "all" / "dev-00000-of-00001.parquet"
    other = (small_run.standin / "mmlu" / "all" / "validation-00000-of-00001.parquet").read_bytes()
    edit(raw, lambda _: other)
    assert planned(small_run.snakemake("--dry-run")) == FROM_DATA


@pytest.mark.parametrize(
    "path", ["mmlu/all/dev-00000-of-00001.parquet", "model/model.safetensors", "model/config.json"]
)
def test_a_raw_file_that_was_touched(small_run, path):
    os.utime(small_run.standin / path)
    assert planned(small_run.snakemake("--dry-run")) == {}


def test_a_script_that_was_touched(small_run):
    os.utime(small_run.workflow / "scripts" / "finetune.py")
    assert planned(small_run.snakemake("--dry-run")) == {}


def test_a_forced_stage_runs_with_what_follows(small_run):
    assert (
        planned(small_run.snakemake("--dry-run", "--forcerun", "measure_latency")) == {"measure_latency": 5} | SUMMARY
    )
