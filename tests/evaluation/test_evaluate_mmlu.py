"""Shards give the same results as one job, and these equal the results of lm-eval's own mmlu group."""

import json
import shutil

import lm_eval
import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import download_mmlu
from int4_qat.data import mmlu
from int4_qat.engines import inference
from int4_qat.evaluation import mmlu_harness
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import run_in_process, run_script
from workflows import small_config, snakemake, write_config

LIMIT = 3


def evaluate(model, mmlu, folder, shards, engine="stock", fewshot=1):
    """Write mmlu.json and mmlu_samples.parquet, gathered from the given number of shards, and return their folder."""
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
@pytest.mark.parametrize("engine", ["stock", "last_position"])
def test_four_shards_are_one(untrained, mmlu_folder, tmp_path, engine):
    """The results include the comparison with lm-eval's own code."""
    folders = [tmp_path / str(shards) for shards in (1, 4)]
    for folder in folders:
        folder.mkdir()
        evaluate(untrained / "model", mmlu_folder, folder, int(folder.name), engine)
    whole, parts = folders
    for name in ("mmlu.json", "mmlu_samples.parquet"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    check = json.loads((whole / "mmlu.json").read_text())["stock_check"]
    assert (check and check["questions"]) == (2 * 57 if engine == "last_position" else None)


def test_the_numbers_are_lm_evals(untrained, mmlu_folder, whole, tmp_path):
    results = lm_eval.simple_evaluate(
        HFLM(
            pretrained=inference.load_model(untrained / "model", torch.float32, "cpu"),
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
    assert report["questions"] == 2 * 57  # the stand-in has two questions per subject


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
    assert "expected the settings of the first shard, found others" in result.stderr
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


def test_mmlus_subjects_are_lm_evals():
    assert list(mmlu.SUBJECTS) == sorted(mmlu_harness.tasks())


@pytest.fixture
def source(untrained, tmp_path):
    """Return a copy of the stand-in's data that a test may edit."""
    return shutil.copytree(untrained / "mmlu", tmp_path / "source")


def change_split(source, split, change):
    path = source / "all" / f"{split}-00000-of-00001.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def keep(source, split, count):
    """Keep only the first `count` questions of anatomy in a split."""
    change_split(
        *(source, split),
        lambda table: table[(table["subject"] != "anatomy") | (table.groupby("subject").cumcount() < count)],
    )


def download(monkeypatch, source, shots, folder):
    run_in_process(download_mmlu, monkeypatch, "--source", source, "--num-fewshot", shots, "--output", folder)


@pytest.mark.parametrize(
    ("split", "count", "shots", "problem"),
    [
        ("test", 1, 0, "test: expected 2 or more questions of 'anatomy', found 1"),
        ("dev", 3, 4, "dev: expected 4 or more questions of 'anatomy', the examples of num_fewshot 4, found 3"),
        ("dev", 0, 1, "dev: expected 1 or more questions of 'anatomy', the examples of num_fewshot 1, found 0"),
    ],
)
def test_too_few_questions_are_one_line_at_download(monkeypatch, source, tmp_path, split, count, shots, problem):
    keep(source, split, count)
    with pytest.raises(InputError, match=f"^{source}: {problem}$"):
        download(monkeypatch, source, shots, tmp_path / "mmlu")
    assert not (tmp_path / "mmlu").exists()


def test_a_subject_of_mmlu_that_is_nowhere_is_one_line_at_download(monkeypatch, source, tmp_path):
    for split in ("dev", "validation", "test"):
        keep(source, split, 0)
    problem = "test: expected 2 or more questions of 'anatomy', found 0"
    with pytest.raises(InputError, match=f"^{source}: {problem}$"):
        download(monkeypatch, source, 0, tmp_path / "mmlu")


@pytest.mark.parametrize(("split", "count", "shots"), [("dev", 3, 3), ("dev", 0, 0), ("validation", 0, 5)])
def test_just_enough_questions(monkeypatch, source, tmp_path, split, count, shots):
    keep(source, split, count)
    download(monkeypatch, source, shots, tmp_path / "mmlu")
    report = json.loads((tmp_path / "mmlu" / "report.json").read_text())
    assert report["fewest_examples"]["count"] == (count if split == "dev" else 5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda names: names.replace("virology", "baking"), "test: expected MMLU's 57 subjects, found 'baking'"),
        (
            lambda names: names.replace("virology", "sociology"),
            "test: expected 2 or more questions of 'virology', found 0",
        ),
    ],
)
def test_evaluation_by_hand_says_the_same(untrained, mmlu_folder, tmp_path, change, problem):
    data = shutil.copytree(mmlu_folder, tmp_path / "mmlu")
    test = pd.read_parquet(data / "test.parquet")
    test.assign(subject=change(test["subject"])).to_parquet(data / "test.parquet", index=False)
    options = ["--checkpoint", untrained / "model", "--mmlu", data, "--num-fewshot", 0, "--batch-size", 1]
    outputs = ["--output", tmp_path / "0.json", "--samples", tmp_path / "0.parquet"]
    result = run_script("evaluate_mmlu", *options, "--dtype", "float32", *outputs)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, f"error: {data}: {problem}")


@pytest.mark.slow
def test_too_many_shots_end_the_workflow_ahead_of_training(untrained, source, tmp_path):
    """The download refuses them; later, when a change of shots re-downloads nothing, the check of the config does."""
    keep(source, "dev", 1)
    config = small_config(untrained)
    config["data"]["source"] = str(source)
    options = ["--profile", "profiles/demo", "--directory", tmp_path / "run", "results/demo/train.parquet"]

    def run(shots):
        config["evaluation"]["mmlu"]["num_fewshot"] = shots
        return snakemake(*options, "--configfile", write_config(config, tmp_path / "config.yaml"))

    result, few = run(2), "dev: expected 2 or more questions of 'anatomy', the examples of num_fewshot 2, found 1"
    assert result.returncode != 0
    assert f"error: {source}: {few}" in result.stderr.splitlines()
    assert not (tmp_path / "run" / "results").exists()
    assert run(1).returncode == 0
    result, known = run(2), f"expected at most 1, since dev of {source} has no more examples of 'anatomy', found 2"
    assert result.returncode != 0
    assert result.stderr.strip().endswith(f"config error: evaluation.mmlu.num_fewshot: {known}")
    keep(source, "dev", 0)  # changed data are re-downloaded and re-checked
    assert f"error: {source}: {few.replace('found 1', 'found 0')}" in run(2).stderr.splitlines()
