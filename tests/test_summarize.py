"""The card's own table comes out of the card's own numbers; missing or foreign results are errors."""

import json

import numpy as np
import pandas as pd
import pytest

import summarize
from conftest import run_script

CARD = {
    # variant: MMLU accuracy, the card's normalized degradation, as printed
    "base-bf16": (71.51, 0.0),
    "base-int4": (69.48, -1.0),
    "lora-bf16": (71.55, 0.02),
    "lora-int4": (69.58, -0.95),
    "qat-int4": (70.18, -0.655),
}
VARIANTS = ["base-bf16", "base-int4", "qat-int4"]


def test_the_cards_normalized_degradation():
    for accuracy, printed in CARD.values():
        assert summarize.degradation(accuracy, 71.51, 69.48) == pytest.approx(printed, abs=0.002)


def test_no_loss_is_no_ratio():
    assert summarize.finite(summarize.degradation(70.0, 70.0, 70.0)) is None


@pytest.fixture
def results(tmp_path):
    generator = np.random.default_rng(0)
    right = {"base-bf16": 0.9, "base-int4": 0.7, "qat-int4": 0.8}
    for name in VARIANTS:
        folder = tmp_path / name
        folder.mkdir()
        correct = generator.permutation(np.arange(1000) < 1000 * right[name])
        table = pd.DataFrame({"subject": "anatomy", "index": range(1000), "correct": correct})
        table.to_parquet(folder / "mmlu_samples.parquet")
        mmlu = {"accuracy": right[name], "stderr": 0.01, "questions": 1000, "subjects": 1}
        memory = {"peak_gb": 24.5 if name == "base-bf16" else 8.34, "checkpoint_gb": 1, "weights_gb": 1}
        memory |= {"dequantized": False, "measure": "max_memory_reserved"}
        latency = {"mean_s": 3.73 if name == "base-bf16" else 2.16, "engine": "vllm", "batch_size": 1}
        latency |= {"dequantized": False}
        for key, content in {"mmlu": mmlu, "memory": memory, "latency": latency}.items():
            (folder / f"{key}.json").write_text(json.dumps(content))
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "costs.json").write_text("{}")
    return tmp_path


def run(results):
    return run_script(
        "summarize",
        *("--model", "m", "--variants", *VARIANTS, "--results", results, "--data-report", results / "report.json"),
        *("--costs", results / "costs.json"),
        *("--json", results / "summary.json", "--csv", results / "summary.csv"),
    )


def test_columns_of_the_three_tables(results):
    assert run(results).returncode == 0
    rows = {row["name"]: row for row in json.loads((results / "summary.json").read_text())["variants"]}
    qat = rows["qat-int4"]
    assert qat["recovered"] == pytest.approx(0.5)
    low, high = qat["recovered_ci95"]
    assert low < 0.5 < high
    assert qat["memory"]["reduction"] == pytest.approx(0.66, abs=0.005)  # the card: 66%
    assert qat["latency"]["speedup"] == pytest.approx(1.73, abs=0.005)  # the card: 1.73x
    assert pd.read_csv(results / "summary.csv")["variant"].tolist() == VARIANTS


@pytest.mark.parametrize("name", ["mmlu.json", "mmlu_samples.parquet", "memory.json", "latency.json"])
def test_a_missing_result_is_an_error(results, name):
    (results / "qat-int4" / name).unlink()
    result = run(results)
    assert result.returncode == 1
    assert name in result.stderr
    assert not (results / "summary.json").exists()


def test_samples_of_another_run_are_an_error(results):
    path = results / "qat-int4" / "mmlu_samples.parquet"
    table = pd.read_parquet(path)
    table.iloc[:-1].to_parquet(path)
    assert "expected 1000 questions, found 999" in run(results).stderr
    table["index"] += 1
    table.to_parquet(path)
    assert "qat-int4: asked other questions than base-bf16" in run(results).stderr
