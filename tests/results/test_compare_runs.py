"""Test the comparison of runs: how their configs differ, and how their answers differ on the same questions."""

import json
import shutil
import sys

import pandas as pd
import pytest

import compare_runs
from int4_qat.system.errors import InputError
from programs import run_script
from test_model_card import change


@pytest.fixture
def other(finished):
    """Copy the run, with another learning rate and some answers of qat-int4 changed, and return its folder."""
    folder = shutil.copytree(finished, finished.parents[1] / "results-b" / "demo")
    change(folder / "provenance.json", "settings", "arms", "qat", "learning_rate", value=0.1)
    path = folder / "qat-int4" / "mmlu_samples.parquet"
    samples = pd.read_parquet(path)
    wrong, right = samples.index[~samples["correct"]][:9], samples.index[samples["correct"]][:1]
    samples.loc[wrong, "correct"] = True
    samples.loc[right, "correct"] = False
    samples.to_parquet(path)
    accuracy = float(samples["correct"].mean())
    change(folder / "summary.json", "variants", 5, "headline", "value", value=accuracy)
    return folder


def compare(*arguments):
    result = run_script("compare_runs", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("both", [True, False])
def test_a_variant_without_latency_has_no_difference(finished, other, both):
    for folder in [finished, other] if both else [other]:
        summary = json.loads((folder / "summary.json").read_text())
        summary["variants"][1]["latency"] = None
        (folder / "summary.json").write_text(json.dumps(summary))
    assert "base-int4" in compare(finished, other)


def test_differences_are_paired_on_the_same_questions(finished, other, tmp_path):
    printed = compare(finished, other, "--json", tmp_path / "comparison.json")
    (run,) = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    assert [(found["key"], found["here"]) for found in run["config"]] == [("arms.qat.learning_rate", 0.1)]
    found = {variant["variant"]: variant for variant in run["variants"]}
    questions = len(pd.read_parquet(finished / "qat-int4" / "mmlu_samples.parquet"))
    paired = found["qat-int4"]["paired"]
    assert paired["difference"] == pytest.approx(8 / questions)
    assert found["qat-int4"]["headline"]["difference"] == pytest.approx(8 / questions)
    low, high = paired["difference_ci95"]
    assert 0 < low < 8 / questions < high
    assert paired["mcnemar_p"] == pytest.approx(2 * 11 / 2**10)  # a coin that lands on one side 9 times of 10
    assert found["lora-int4"]["paired"]["difference_ci95"] == [0, 0]
    line = next(line for line in printed.splitlines() if line.strip().startswith("qat-int4"))
    assert " yes " in line
    assert "learning_rate" in printed


def test_other_questions_are_not_paired(finished, other, tmp_path):
    change(other / "provenance.json", "files", "resources/mmlu/test.parquet", value="0" * 64)
    printed = compare(finished, other, other, "--json", tmp_path / "comparison.json")
    runs = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    assert [run["same_questions"] for run in runs] == [False, False]
    assert all(variant["paired"] is None for run in runs for variant in run["variants"])
    assert "other questions" in printed


def test_another_headline_is_not_compared(finished, other):
    change(other / "summary.json", "headline", "metric", value="facts_kl")
    result = run_script("compare_runs", finished, other)
    assert result.returncode == 1
    assert f"{other}: expected the headline of {finished}, mmlu, found facts_kl" in result.stderr


def test_one_folder_is_not_a_comparison(finished, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare_runs", str(finished)])
    with pytest.raises(InputError, match="expected two or more folders of results"):
        compare_runs.main()
