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

import check_mmlu
from int4_qat import mmlu, mmlu_harness, models, tokenization
from int4_qat.errors import InputError
from programs import run_in_process, run_script

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
@pytest.mark.parametrize("engine", ["stock", "last_position"])
def test_four_shards_are_one(untrained, mmlu_folder, tmp_path, engine):
    """What the comparison with lm-eval's own code found included."""
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


def test_mmlus_subjects_are_lm_evals():
    assert list(mmlu.SUBJECTS) == sorted(mmlu_harness.tasks())


def kept(data, split, subject, count):
    """Leave the first questions of one subject in a split; returns its file."""
    path = data / f"{split}.parquet"
    table = pd.read_parquet(path)
    table[(table["subject"] != subject) | (table.groupby("subject").cumcount() < count)].to_parquet(path, index=False)
    return path


def check(monkeypatch, data, shots, output):
    run_in_process(check_mmlu, monkeypatch, "--mmlu", data, "--num-fewshot", shots, "--output", output)


@pytest.mark.parametrize("split", ["dev", "validation", "test"])
def test_another_subject_is_one_line(monkeypatch, mmlu_folder, tmp_path, split):
    data = shutil.copytree(mmlu_folder, tmp_path / "mmlu")
    path = data / f"{split}.parquet"
    table = pd.read_parquet(path)
    table.assign(subject=table["subject"].replace("virology", "baking")).to_parquet(path, index=False)
    with pytest.raises(InputError, match=f"^{path}: expected MMLU's 57 subjects, found 'baking'$"):
        check(monkeypatch, data, 0, tmp_path / "questions.json")


@pytest.mark.parametrize(
    ("split", "count", "shots", "problem"),
    [
        ("test", 0, 0, "expected 2 or more questions of 'anatomy', found 0"),
        ("test", 1, 0, "expected 2 or more questions of 'anatomy', found 1"),
        ("dev", 3, 4, "expected 4 or more questions of 'anatomy' for 4 shots, found 3"),
        ("dev", 0, 1, "expected 1 or more questions of 'anatomy' for 1 shots, found 0"),
    ],
)
def test_too_few_questions_are_one_line(monkeypatch, mmlu_folder, tmp_path, split, count, shots, problem):
    data = shutil.copytree(mmlu_folder, tmp_path / "mmlu")
    path = kept(data, split, "anatomy", count)
    with pytest.raises(InputError, match=f"^{path}: {problem}$"):
        check(monkeypatch, data, shots, tmp_path / "questions.json")


@pytest.mark.parametrize(("split", "count", "shots"), [("dev", 3, 3), ("dev", 0, 0), ("validation", 0, 5)])
def test_just_enough_questions(monkeypatch, mmlu_folder, tmp_path, split, count, shots):
    data = shutil.copytree(mmlu_folder, tmp_path / "mmlu")
    kept(data, split, "anatomy", count)
    check(monkeypatch, data, shots, tmp_path / "questions.json")


def test_the_shots_leave_no_trace(monkeypatch, mmlu_folder, tmp_path):
    """Else provenance would find that the training texts come from another check than the one that is there."""
    for shots in (0, 5):
        check(monkeypatch, mmlu_folder, shots, tmp_path / f"{shots}.json")
        assert json.loads((tmp_path / f"{shots}.json").read_text())["least"] == {"dev": 5, "validation": 1, "test": 2}
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "5.json").read_bytes()


def test_evaluation_by_hand_says_the_same(untrained, mmlu_folder, tmp_path):
    data = shutil.copytree(mmlu_folder, tmp_path / "mmlu")
    path = kept(data, "dev", "anatomy", 1)
    options = ["--checkpoint", untrained / "model", "--mmlu", data, "--num-fewshot", 2, "--batch-size", 1]
    outputs = ["--output", tmp_path / "0.json", "--samples", tmp_path / "0.parquet"]
    result = run_script("evaluate_mmlu", *options, "--dtype", "float32", *outputs)
    problem = f"{path}: expected 2 or more questions of 'anatomy' for 2 shots, found 1"
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, f"error: {problem}")
