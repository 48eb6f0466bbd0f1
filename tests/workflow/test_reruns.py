"""Test that, after one change to a finished run, a dry-run plans what depends on it, and nothing else."""

import os

import pytest
import yaml

from programs import ROOT
from workflows import planned, write_config

RECORDED = {"record_provenance": 1, "render_pages": 1}
CARD = {"model_card": 1} | RECORDED
PLOTTED = {"plot_results": 1} | RECORDED
SUMMARIZED = {"summarize": 1} | PLOTTED | CARD
SUMMARY = {"report_costs": 1} | SUMMARIZED


def measured(variants, recorded, compared):
    """Return the jobs that run inference with the given number of the six variants, and those that follow.

    `recorded` of the three weights in bf16 and `compared` of the four quantized variants read the texts.
    """
    of_all = dict.fromkeys(("evaluate_mmlu", "gather_mmlu", "measure_memory", "measure_latency"), variants)
    read = {"record_hidden_states": recorded, "evaluate_divergence": compared}
    return of_all | {rule: count for rule, count in read.items() if count} | SUMMARY


DIVERGED = {"record_hidden_states": 3, "evaluate_divergence": 4} | SUMMARY
SCORED = {"evaluate_mmlu": 6, "gather_mmlu": 6} | SUMMARY
TIMED = {"measure_latency": 6} | SUMMARY
MEMORY = {"measure_memory": 6} | SUMMARY
MEASURED = measured(6, 3, 4)
PARITY = {"check_parity": 2}
INFERRED = PARITY | MEASURED
QUANTIZED = {"quantize": 4} | PARITY | measured(4, 0, 4)  # all but base-bf16 and lora-bf16
ROUNDED = {"quantize": 3} | PARITY | measured(3, 0, 3)  # those by method rtn, so not base-gptq
CALIBRATED = {"calibrate": 1, "quantize": 1} | measured(1, 0, 1)  # base-gptq alone
MERGED = {"merge": 2, "quantize": 2} | PARITY | measured(3, 2, 2)  # all of the two arms
TRAINED = {"finetune": 2} | MERGED
WRITTEN = {"calibrate": 1, "quantize": 3} | measured(4, 2, 3)  # the two arms and base-gptq, but not the plain base
MERGED_AND_CALIBRATED = MERGED | WRITTEN
TRAINED_AND_CALIBRATED = TRAINED | WRITTEN
EXPORTED = MERGED_AND_CALIBRATED | {"quantize": 4} | measured(5, 2, 4)  # all but base-bf16
TRAINED_AND_QUANTIZED = TRAINED | EXPORTED
EVERY_WEIGHT = TRAINED_AND_QUANTIZED | MEASURED
FORMATTED = {"format_mmlu": 1} | TRAINED_AND_CALIBRATED  # training and calibration share their questions
ONE_ARM = {"finetune": 1, "merge": 1, "quantize": 1, "check_parity": 1}
RETRAINED = {"finetune": 1, "merge": 1, "record_hidden_states": 1}
ONE_VARIANT = measured(1, 1, 1)
READ_ONCE = {"record_hidden_states": 1, "evaluate_divergence": 1}  # an arm's weights, and its int4 variant
CHECKED = {"check_contamination": 1, "check_texts": 1}
UNCALIBRATED = {"check_texts": 1} | SUMMARY  # with no calibrated variant left, check_texts reads for training only
FROM_MODEL = {"download_model": 1, "link_base": 1, "format_mmlu": 1} | EVERY_WEIGHT
FROM_TEXT = {"download_text": 1, "check_texts": 1} | DIVERGED
FROM_DATA = (
    {"download_mmlu_train": 1, "download_mmlu": 1} | CHECKED | FORMATTED | {"evaluate_mmlu": 6, "gather_mmlu": 6}
)
EVERYTHING = FROM_DATA | FROM_MODEL | FROM_TEXT

PACKAGE = "scripts/int4_qat"
MODULES = {
    "checkpoint/adapters.py": MERGED,
    "checkpoint/architecture.py": EVERY_WEIGHT,
    "checkpoint/blocks.py": EVERY_WEIGHT,
    "checkpoint/heads.py": TRAINED | DIVERGED | SCORED,
    "checkpoint/loading.py": TRAINED_AND_CALIBRATED | MEASURED,
    "checkpoint/model_folder.py": FROM_MODEL,
    "checkpoint/module_names.py": TRAINED_AND_QUANTIZED | DIVERGED | SCORED | {"measure_latency": 6},
    "checkpoint/text_model.py": TRAINED_AND_QUANTIZED | DIVERGED | SCORED | {"measure_latency": 6},
    "checkpoint/weight_files.py": FROM_MODEL,
    "checkpoint/weight_writer.py": EXPORTED,
    "config/calibration.py": SUMMARIZED,
    "config/config_values.py": {},
    "config/given_sources.py": {},  # checks the config, and changes no result
    "config/layers.py": {},
    "config/limits.py": {},  # only refuses, like model_facts and others
    "config/metric_names.py": SUMMARIZED,
    "config/model_facts.py": {},
    "config/named_texts.py": CARD,
    "config/quantizations.py": SUMMARIZED,
    "config/recipe.py": TRAINED,
    "config/recipes.py": CARD,
    "config/shares.py": TRAINED,
    "config/schema.py": {},
    "config/schema_errors.py": {},
    "config/variants.py": SUMMARIZED,
    "config/workflow_config.py": {},
    "data/conversations.py": TRAINED_AND_CALIBRATED | FROM_TEXT | CHECKED,
    "data/hub.py": EVERYTHING,
    "data/letters.py": FROM_DATA,
    "data/mmlu.py": FROM_DATA,
    "data/mmlu_parquet.py": FROM_DATA,
    "data/named_files.py": CHECKED | TRAINED,
    "data/parquet_files.py": FROM_DATA | FROM_TEXT,
    "data/question_files.py": FROM_DATA,
    "data/shared_words.py": CHECKED | SUMMARY,
    "data/text_files.py": FROM_DATA | FROM_TEXT,
    "data/texts.py": FROM_TEXT,
    "engines/decoding.py": TIMED,
    "engines/inference.py": INFERRED,
    "engines/int4_loading.py": INFERRED,
    "engines/one_token_attention.py": TIMED,
    "engines/processes.py": TIMED,
    "engines/stored_words.py": INFERRED,
    "engines/vllm_process.py": TIMED,
    "evaluation/answers.py": SCORED,
    "evaluation/comparison.py": DIVERGED,
    "evaluation/divergence.py": DIVERGED,
    "evaluation/hidden_states.py": DIVERGED,
    "evaluation/last_position.py": SCORED,
    "evaluation/mmlu_harness.py": SCORED,
    "evaluation/prefix_attention.py": SCORED,
    "evaluation/question_tasks.py": {},  # this run has no questions of the user's own
    "evaluation/replicas.py": SCORED,
    "evaluation/scoring.py": SCORED,
    "evaluation/stock_scores.py": SCORED,
    "evaluation/task_harness.py": {},  # no tasks in this run
    "kernels/tile_kernel.py": INFERRED,
    "kernels/tiles.py": INFERRED,
    "quantization/batches.py": CALIBRATED,
    "quantization/calibration.py": CALIBRATED,
    "quantization/calibration_texts.py": CALIBRATED,
    "quantization/clipping.py": CALIBRATED,
    "quantization/compensation.py": CALIBRATED,
    "quantization/exports.py": QUANTIZED,
    "quantization/folds.py": {},  # used by awq, which calibrates nothing in this run
    "quantization/formats/compressed_tensors.py": {},  # no variant of this run has that format
    "quantization/formats/torchao_plain.py": QUANTIZED,
    "quantization/grids.py": TRAINED_AND_QUANTIZED,
    "quantization/int4.py": EVERY_WEIGHT,
    "quantization/layer_inputs.py": CALIBRATED,
    "quantization/left_out.py": QUANTIZED,
    "quantization/linears.py": TRAINED_AND_QUANTIZED,
    "quantization/methods/awq.py": {},
    "quantization/methods/gptq.py": CALIBRATED,
    "quantization/methods/rtn.py": ROUNDED,
    "quantization/mismatch.py": {},
    "quantization/packed_weight.py": INFERRED,
    "quantization/plain_weight.py": QUANTIZED | INFERRED,
    "quantization/record.py": TRAINED_AND_QUANTIZED,
    "quantization/requirements.py": {},
    "quantization/schemes.py": EVERY_WEIGHT,
    "quantization/torchao_tensor.py": QUANTIZED,
    "results/against_baseline.py": SUMMARIZED,
    "results/calibrated_bases.py": SUMMARIZED,
    "results/card.py": CARD,
    "results/card_checks.py": CARD,
    "results/card_filters.py": CARD,
    "results/card_metadata.py": CARD,
    "results/chartqa_figures.py": {},
    "results/divergence_report.py": DIVERGED,
    "results/measured_files.py": SUMMARIZED,
    "results/measurements.py": SUMMARIZED,
    "results/metrics.py": SUMMARIZED,
    "results/schema/chartqa.py": SUMMARIZED,
    "results/schema/divergence.py": DIVERGED,
    "results/schema/latency.py": TIMED,
    "results/schema/memory.py": MEMORY,
    "results/schema/mmlu.py": SCORED,
    "results/schema/parity.py": PARITY | SUMMARY,
    "results/schema/questions.py": SUMMARIZED,
    "results/schema/serving.py": SUMMARIZED,
    "results/schema/task.py": SUMMARIZED,
    "results/plot_parts.py": PLOTTED,
    "results/seeds.py": SUMMARIZED,
    "results/statistics.py": SUMMARIZED,
    "results/summary.py": SUMMARIZED,
    "results/tables.py": SUMMARIZED,
    "results/task_metrics.py": SUMMARIZED,
    "results/units.py": SUMMARIZED,
    "results/verdict.py": SUMMARIZED,
    "results/verification.py": {},
    "standin/gemma_folder.py": {},
    "standin/persons.py": {},
    "standin/standin.py": {},
    "standin/standin_training.py": {},
    "system/attention.py": TRAINED | SCORED,
    "system/cuda_graphs.py": CALIBRATED | TIMED,
    "system/deployment.py": {},  # used only for planning
    "system/devices.py": TRAINED_AND_CALIBRATED | MEASURED,
    "system/errors.py": EVERYTHING,
    "system/failures.py": {},  # used only when a run has failed
    "system/files.py": EVERYTHING,
    "system/parallel.py": TRAINED_AND_QUANTIZED | TIMED | SCORED,
    "system/rooms.py": TRAINED_AND_QUANTIZED,
    "system/scratch.py": FROM_DATA | SCORED | TIMED | FROM_TEXT,
    "system/signals.py": FROM_DATA | SCORED | TIMED | FROM_TEXT,
    "system/sources.py": EVERYTHING,
    "tokenizer/pieces.py": TRAINED_AND_CALIBRATED,
    "tokenizer/tokenization.py": FORMATTED | SCORED | DIVERGED | {"check_texts": 1, "measure_memory": 6},
    "tokenizer/tokenizer_check.py": {},
    "tokenizer/training_texts.py": FORMATTED | {"check_texts": 1},
    "tokenizer/turns.py": TRAINED,
    "tokenizer/windows.py": TRAINED_AND_CALIBRATED | DIVERGED,
    "training/backends/transformers.py": TRAINED,
    "training/backends/unsloth.py": {},  # another backend trains
    "training/checkpoints.py": TRAINED,
    "training/collation.py": TRAINED,
    "training/compilation.py": TRAINED,
    "training/data.py": TRAINED,
    "training/distillation.py": TRAINED,
    "training/learned_grid.py": TRAINED,
    "training/log_table.py": TRAINED | PLOTTED,
    "training/merged_kernel.py": TRAINED,
    "training/merged_linear.py": TRAINED,
    "training/merged_weight.py": TRAINED,
    "training/packing.py": TRAINED,
    "training/qat.py": TRAINED,
    "training/ranks.py": TRAINED,
    "training/recipe.py": TRAINED,
    "training/recomputation.py": TRAINED,
    "training/run.py": TRAINED,
    "training/sharding.py": TRAINED,
    "training/start.py": TRAINED,
    "training/teachers.py": TRAINED,
    "training/trainer.py": TRAINED,
    "training/callbacks.py": TRAINED,
}


@pytest.fixture
def edit(small_run):
    """Yield a function that changes a file of the finished run; restore the contents, but not the times, afterwards."""
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


def test_every_module_has_a_row_and_every_row_a_module():
    package = ROOT / PACKAGE
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert found == MODULES.keys()


def test_no_kernel_loader_or_writer_trains_anything():
    """Whatever the run, editing such a module must not plan these jobs: up to 50 GPU hours depend on it."""
    for path, jobs in MODULES.items():
        if path.startswith(("kernels/", "engines/", "evaluation/", "results/")):
            assert not jobs.keys() & {"finetune", "merge", "quantize"}, path
        if path.startswith(("quantization/formats/", "quantization/methods/")):
            assert not jobs.keys() & {"finetune", "merge"}, path


@pytest.mark.parametrize(("path", "expected"), [row for row in MODULES.items() if row[1]])
def test_an_edited_module(small_run, edit, path, expected):
    edit(small_run.workflow / PACKAGE / path, comment)
    assert planned(small_run.snakemake("--dry-run")) == expected


def test_edited_modules_that_nothing_depends_on(small_run, edit):
    for path in [path for path, expected in MODULES.items() if not expected]:
        edit(small_run.workflow / PACKAGE / path, comment)
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
        ("scripts/calibrate.py", CALIBRATED),
        ("scripts/quantize.py", QUANTIZED),
        ("scripts/check_parity.py", PARITY | SUMMARY),
        ("scripts/download_text.py", FROM_TEXT),
        ("scripts/record_hidden_states.py", DIVERGED),
        ("scripts/evaluate_divergence.py", {"evaluate_divergence": 4} | SUMMARY),
        ("scripts/evaluate_mmlu.py", SCORED),
        ("scripts/gather_mmlu.py", {"gather_mmlu": 6} | SUMMARY),
        ("scripts/measure_memory.py", MEMORY),
        ("scripts/measure_latency.py", TIMED),
        ("scripts/check_contamination.py", {"check_contamination": 1} | SUMMARY),
        ("scripts/check_texts.py", {"check_texts": 1} | SUMMARY),
        ("scripts/report_costs.py", {"report_costs": 1} | CARD),
        ("scripts/summarize.py", SUMMARIZED),
        ("scripts/plot_results.py", PLOTTED),
        ("scripts/model_card.py", CARD),
        ("scripts/templates/model_card.md.jinja", CARD),
        ("scripts/record_provenance.py", RECORDED),
        ("scripts/render_pages.py", {"render_pages": 1}),
        ("scripts/templates/run.html.jinja", {"render_pages": 1}),
        ("scripts/upload_model.py", {}),
        ("scripts/verify.py", {}),
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
            ONE_ARM | ONE_VARIANT | {k: 2 for k in ONE_VARIANT if k not in SUMMARY | READ_ONCE},
        ),
        ("finetune.arms.qat.learning_rate", 1e-4, ONE_ARM | ONE_VARIANT),
        ("quantizations.gptq.method", "awq", CALIBRATED),
        ("quantizations.gptq.method", "rtn", {"quantize": 1} | measured(1, 0, 1) | UNCALIBRATED),
        ("calibration.samples", 16, CALIBRATED),
        ("calibration.length", 64, CALIBRATED),
        ("calibration.batch_size", 4, CALIBRATED),
        ("calibration.seed", 1, CALIBRATED),
        ("evaluation.headline", "families_kl", SUMMARIZED),
        ("evaluation.divergence.context", 32, DIVERGED),
        ("evaluation.mmlu", None, {"check_contamination": 1} | SUMMARY),
        ("evaluation.mmlu.num_fewshot", 1, SCORED),
        ("evaluation.mmlu.engine", "stock", SCORED),
        ("evaluation.mmlu.shards", 2, SCORED | {"evaluate_mmlu": 12}),
        ("evaluation.memory.max_new_tokens", 5, MEMORY),
        ("plots.colours.qat", "#009E73", PLOTTED),
        ("evaluation.latency.batch_sizes", [1, 2], TIMED),
        ("evaluation.latency.repeats", 3, TIMED),
        ("evaluation.latency.vllm_time_limit", 7200, CARD),
        ("variants", ["base-bf16", "base-int4", "qat-int4"], UNCALIBRATED),
        ("finetune.allow_worse", True, SUMMARIZED),
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
    assert planned_with(config, small_run, tmp_path) == expected


@pytest.mark.parametrize("change", [{"group_size": 32}, {"ignore": ["lm_head"]}], ids=lambda change: next(iter(change)))
def test_another_scheme_of_all_that_share_it(small_run, tmp_path, change):
    """A method is compared with rounding in the same scheme, so both must change together."""
    config = yaml.safe_load(small_run.config.read_text())
    for entry in config["quantizations"].values():
        entry |= change
    assert planned_with(config, small_run, tmp_path) == QUANTIZED | RETRAINED | {"calibrate": 1}


def test_another_text_to_calibrate_on(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    (tmp_path / "general.txt").write_text("Some text that nobody holds out.\n")
    config["texts"] = {"general": {"source": str(tmp_path), "files": "*.txt"}}
    assert planned_with(config, small_run, tmp_path) == {}  # nothing is calibrated on it yet
    config["calibration"]["texts"] = ["questions", "general"]
    expected = {"download_text": 1} | CHECKED | CALIBRATED
    assert planned_with(config, small_run, tmp_path) == expected
    config["calibration"]["texts"] = ["general"]
    assert planned_with(config, small_run, tmp_path) == expected


def test_another_text_to_train_an_arm_on_is_that_arms_alone(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    (tmp_path / "general.txt").write_text("Some text that nobody holds out.\n")
    config["texts"] = {"general": {"source": str(tmp_path), "files": "*.txt"}}
    distilled = {"distillation": {"weight": 1, "tokens": "all", "temperature": 1}, "packing": True}
    config["finetune"]["arms"]["qat"] |= distilled | {"texts": {"questions": 1, "general": 3}}
    expected = {"download_text": 1} | CHECKED | ONE_ARM | ONE_VARIANT
    assert planned_with(config, small_run, tmp_path) == expected


def test_another_held_out_text_calibrates_and_trains_nothing(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    (tmp_path / "other.txt").write_text("Some text that nobody calibrates on.\n")
    config["evaluation"]["divergence"]["texts"]["other"] = {"source": str(tmp_path), "files": "*.txt"}
    assert planned_with(config, small_run, tmp_path) == FROM_TEXT


def test_nothing_calibrated_needs_no_section(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    config["variants"].remove("base-gptq")
    config["calibration"] = None
    assert planned_with(config, small_run, tmp_path) == UNCALIBRATED


def planned_with(config, small_run, tmp_path):
    """Return the number of jobs by rule in a dry-run with another config."""
    return planned(small_run.snakemake("--dry-run", "--configfile", write_config(config, tmp_path / "config.yaml")))


def test_a_new_arm_runs_its_own_chain_alone(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    config["finetune"]["arms"]["slow"] = {"quantization": "int4", "learning_rate": 1e-4}
    config["variants"].append("slow-int4")
    assert planned_with(config, small_run, tmp_path) == ONE_ARM | ONE_VARIANT


def test_a_training_that_starts_at_a_calibrated_base_is_its_arms_alone(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    config["finetune"]["arms"]["qat"]["start"] = "gptq"
    assert planned_with(config, small_run, tmp_path) == ONE_ARM | ONE_VARIANT


def test_a_new_task_is_evaluated_on_every_variant(small_run, tmp_path):
    config = yaml.safe_load(small_run.config.read_text())
    settings = {"metric": "acc_norm,none", "engine": "stock", "num_fewshot": 25, "limit": None, "batch_size": 8}
    settings |= {"dtype": "float32"}
    config["evaluation"]["tasks"] = [{"task": "arc_challenge", "source": str(small_run.standin)} | settings]
    assert (
        planned_with(config, small_run, tmp_path)
        == {"download_dataset": 1, "check_task": 1, "check_metric": 1, "evaluate_task": 6} | SUMMARY
    )


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
    assert planned(small_run.snakemake("--dry-run", "--forcerun", "measure_latency")) == TIMED
