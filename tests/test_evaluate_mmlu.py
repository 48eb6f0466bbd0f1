"""Shards give what one job gives, and that is what lm-eval's own mmlu group reports."""

import json
import shutil

import lm_eval
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from int4_qat import mmlu_harness, models, tokenization
from int4_qat.errors import InputError
from programs import run_script

LIMIT = 3


@pytest.fixture(scope="module")
def mmlu_folder(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmlu") / "mmlu"
    result = run_script("download_mmlu", "--source", untrained / "mmlu", "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder


def evaluate(model, mmlu, folder, shards, engine="stock", fewshot=1):
    """mmlu.json and mmlu_samples.parquet by way of some shards."""
    options = ["--checkpoint", model, "--mmlu", mmlu, "--num-fewshot", fewshot, "--limit", LIMIT, "--batch-size", 4]
    reports = [folder / f"{shard}.json" for shard in range(shards)]
    samples = [folder / f"{shard}.parquet" for shard in range(shards)]
    for shard in range(shards):
        paths = ["--output", reports[shard], "--samples", samples[shard]]
        shard_options = ["--shard", shard, "--shards", shards, "--dtype", "float32", "--engine", engine]
        result = run_script("evaluate_mmlu", *options, *shard_options, *paths)
        assert result.returncode == 0, result.stderr
    outputs = ["--output", folder / "mmlu.json", "--samples", folder / "mmlu_samples.parquet"]
    result = run_script("gather_mmlu", "--shard-reports", *reports, "--shard-samples", *samples, *outputs)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def whole(untrained, mmlu_folder, tmp_path_factory):
    return evaluate(untrained / "model", mmlu_folder, tmp_path_factory.mktemp("whole"), 1)


@pytest.mark.slow
def test_four_shards_are_one(untrained, mmlu_folder, whole, tmp_path):
    parts = evaluate(untrained / "model", mmlu_folder, tmp_path, 4)
    for name in ("mmlu.json", "mmlu_samples.parquet"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_the_numbers_are_lm_evals(untrained, mmlu_folder, whole, tmp_path):
    results = lm_eval.simple_evaluate(
        HFLM(
            pretrained=models.load_model(untrained / "model", torch.float32, "cpu"),
            tokenizer=tokenization.load_tokenizer(untrained / "model"),
            batch_size=4,
        ),
        tasks=["mmlu"],
        num_fewshot=1,
        limit=LIMIT,
        task_manager=TaskManager(include_path=str(mmlu_harness.lay_out(mmlu_folder, tmp_path)), include_defaults=False),
    )["results"]
    report = json.loads((whole / "mmlu.json").read_text())
    found = {"mmlu": report}
    found |= {f"mmlu_{name}": scores for name, scores in report["by_category"].items()}
    found |= {f"mmlu_{name}": scores for name, scores in report["by_subject"].items()}
    assert found.keys() == results.keys()
    for name, scores in found.items():
        assert scores["accuracy"] == pytest.approx(results[name]["acc,none"], abs=1e-12)
        assert scores["stderr"] == pytest.approx(results[name]["acc_stderr,none"], abs=1e-12)
    assert report["questions"] == 2 * 57  # the stand-in has two of each subject


def test_a_shard_of_other_settings_is_refused(whole, tmp_path):
    report = json.loads((whole / "0.json").read_text())
    report["settings"]["batch_size"] = 5
    (tmp_path / "other.json").write_text(json.dumps(report))
    samples = whole / "0.parquet"
    result = run_script(
        *(
            "gather_mmlu",
            "--shard-reports",
            whole / "0.json",
            tmp_path / "other.json",
            "--shard-samples",
            samples,
            samples,
        ),
        *("--output", tmp_path / "mmlu.json", "--samples", tmp_path / "samples.parquet"),
    )
    assert result.returncode == 1
    assert "settings differ from those of the first shard" in result.stderr
    assert not (tmp_path / "mmlu.json").exists()


@pytest.mark.parametrize("fewshot", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_the_last_position_alone_gives_the_same_scores(untrained, mmlu_folder, tmp_path, fewshot):
    tables = {}
    for engine in ("stock", "last_position"):
        (tmp_path / engine).mkdir()
        evaluate(untrained / "model", mmlu_folder, tmp_path / engine, 1, engine, fewshot)
        tables[engine] = pd.read_parquet(tmp_path / engine / "mmlu_samples.parquet")
    stock, ours = tables["stock"], tables["last_position"]
    assert (stock.drop(columns=scores_of(stock)) == ours.drop(columns=scores_of(ours))).all().all()
    np.testing.assert_allclose(ours[scores_of(ours)], stock[scores_of(stock)], rtol=1e-5)


def scores_of(table):
    return [name for name in table.columns if name.startswith("log_likelihood_")]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda subjects: subjects.replace("virology", "baking"), "expected MMLU's 57 subjects, found 'baking'"),
        (lambda subjects: subjects.replace("virology", "sociology"), "2 or more questions of 'virology', found 0"),
    ],
)
def test_other_subjects_are_one_line(untrained, mmlu_folder, tmp_path, change, problem):
    data = shutil.copytree(mmlu_folder, tmp_path / "mmlu")
    test = pd.read_parquet(data / "test.parquet")
    test.assign(subject=change(test["subject"])).to_parquet(data / "test.parquet", index=False)
    with pytest.raises(InputError, match=problem):
        mmlu_harness.lay_out(data, tmp_path)
