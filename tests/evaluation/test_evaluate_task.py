"""Run lm-eval's own tasks by name on our data sets: the results that the rules write equal lm-eval's."""

import json
from pathlib import Path

import lm_eval
import pandas as pd
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import check_task
import task_data
from int4_qat.engines import inference
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import LFS_POINTER, run_in_process, run_script
from workflows import planned, small_config, snakemake, write_config

pytestmark = pytest.mark.slow

ARC = Path(lm_eval.__file__).parent / "tasks" / "arc"
SIZES = {"train": 6, "validation": 2, "test": 10}
TARGET = "results/demo/base-bf16/tasks/arc_challenge.json"
SAMPLES = "results/demo/base-bf16/tasks/arc_challenge_samples.parquet"
METRIC = "resources/metrics/arc_challenge.json"
TASK = {"task": "arc_challenge", "metric": "acc_norm,none", "engine": "last_position"}
TASK |= {"num_fewshot": 2, "limit": 8}


@pytest.fixture(scope="module")
def arc(untrained, tmp_path_factory):
    """Return a data set in the layout of allenai/ai2_arc, made of the stand-in's questions."""
    return task_data.arc(tmp_path_factory.mktemp("arc"), "ARC-Challenge", task_data.questions(untrained), SIZES)


@pytest.fixture(scope="module")
def run(untrained, arc, tmp_path_factory):
    """Return a function that runs Snakemake with changed settings of a task that one variant has already done."""
    folder = tmp_path_factory.mktemp("task run")

    def run(*arguments, **changes):
        config = small_config(untrained)
        config["evaluation"]["tasks"] = [TASK | {"source": str(arc), "batch_size": 4, "dtype": "float32"} | changes]
        path = write_config(config, folder / "config.yaml")
        return snakemake(
            TARGET, METRIC, "--profile", "profiles/demo", *arguments, "--configfile", path, "--directory", folder
        )

    result = run()
    assert result.returncode == 0, result.stderr[-3000:]
    run.folder = folder
    return run


@pytest.fixture(scope="module")
def report(run):
    return json.loads((run.folder / TARGET).read_text())


def test_another_metric_is_checked_and_nothing_is_asked_again(run):
    assert planned(run("--dry-run")) == {}
    assert planned(run("--dry-run", metric="acc,none")) == {"check_metric": 1}
    assert planned(run("--dry-run", num_fewshot=3)) == {"check_task": 1, "check_metric": 1, "evaluate_task": 1}
    result = run(metric="acc_nrm,none")
    assert result.returncode == 1
    assert "error: evaluation.tasks: arc_challenge: expected a metric acc,none or" in result.stderr
    assert planned(run("--dry-run")) == {"check_metric": 1}


def check(tmp_path, monkeypatch, **changes):
    """Return check_task's report; let its InputError propagate."""
    options = {"num_fewshot": 2, "task": "arc_challenge"} | changes
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    run_in_process(check_task, monkeypatch, *words, "--output", tmp_path / "checked.json")
    return json.loads((tmp_path / "checked.json").read_text())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "arc_challeng"}, "expected a task or group of lm-eval 0.4.13, found 'arc_challeng'"),
        ({"num_fewshot": 7}, "arc_challenge: expected 7 or more rows for num_fewshot 7, found 6 in "),
        ({"task": "hellaswag"}, r"hellaswag: expected data that fit the task in .*, found KeyError: 'ctx_a'"),
    ],
)
def test_each_misfit_is_one_line(arc, tmp_path, monkeypatch, changes, expected):
    with pytest.raises(InputError, match=expected) as error:
        check(tmp_path, monkeypatch, dataset=arc, **changes)
    assert str(error.value).startswith("evaluation.tasks: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "checked.json").exists()


def test_examples_that_a_task_does_not_take_are_refused(tmp_path, monkeypatch):
    """lm-eval gives no examples to a task whose own config sets their number to 0."""
    folder = task_data.truthful(tmp_path / "truthful")
    options = {"dataset": folder, "task": "truthfulqa_mc2"}
    with pytest.raises(InputError, match="truthfulqa_mc2: expected num_fewshot 0, the only number"):
        check(tmp_path, monkeypatch, **options)
    assert list(check(tmp_path, monkeypatch, **options | {"num_fewshot": 0})["metrics"]) == ["acc,none"]


def test_a_group_is_checked_by_the_figure_for_the_whole(untrained, tmp_path, monkeypatch):
    """The group has 19 of MMLU's subjects, each of which is a config of one data set."""
    folder = task_data.mmlu_by_subject(tmp_path / "mmlu", untrained)
    report = check(tmp_path, monkeypatch, dataset=folder, task="mmlu_stem", num_fewshot=1)
    assert report["metrics"] == {"acc,none": {"higher_is_better": True, "aggregation": "mean", "weight_by_size": True}}
    assert len(report["members"]) == 19


def test_the_numbers_are_lm_evals(untrained, arc, run, report, tmp_path):
    for name in ("arc_easy.yaml", "arc_challenge.yaml"):
        text = (ARC / name).read_text().replace("dataset_path: allenai/ai2_arc", f"dataset_path: {arc}")
        (tmp_path / name).write_text(text + f"\ndataset_kwargs: {{cache_dir: {tmp_path / 'cache'}}}\n")
    expected = lm_eval.simple_evaluate(
        HFLM(
            pretrained=inference.load_model(untrained / "model", torch.float32, "cpu"),
            tokenizer=tokenization.load_tokenizer(untrained / "model"),
            batch_size=4,
        ),
        tasks=["arc_challenge"],
        num_fewshot=2,
        limit=8,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    documents = {sample["doc_id"]: sample for sample in expected["samples"]["arc_challenge"]}
    expected = expected["results"]["arc_challenge"]
    assert report["metrics"].keys() == {"acc,none", "acc_norm,none"}
    for name, found in report["metrics"].items():
        assert found["value"] == pytest.approx(expected[name])
        assert found["stderr"] == pytest.approx(expected[name.replace(",", "_stderr,")])
        assert (found["higher_is_better"], found["aggregation"], found["weight_by_size"]) == (True, "mean", None)
    samples = pd.read_parquet(run.folder / SAMPLES)
    assert list(samples) == ["member", "document", "metric", "value", "weight"]
    assert len(samples) == 16
    assert samples.equals(samples.sort_values(["member", "document", "metric"], ignore_index=True))
    for row in samples.itertuples():
        assert row.value == documents[row.document][row.metric.partition(",")[0]]
        assert (row.member, row.weight) == ("arc_challenge", 1)
    assert report["questions"] == 8
    assert report["settings"]["engine_used"] == "last_position"
    assert report["stock_check"]["questions"] == 2
    assert report["prompts_over_max_length"] == 0
    assert (report["settings"]["bos"], report["settings"]["bos_added_by_tokenizer"]) == ("<bos>", True)
    assert (report["settings"]["num_fewshot"], report["settings"]["limit"]) == (2, 8)


def test_a_folder_without_data_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "README.md").touch()
    result = run_script("download_dataset", "--source", empty, "--output", tmp_path / "dataset")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {empty}: expected a data set (*.parquet, ")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("name", ["data/test.parquet", "test.jsonl", "train.csv"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path, name):
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text(LFS_POINTER)
    result = run_script("download_dataset", "--source", tmp_path / "mine", "--output", tmp_path / "dataset")
    assert result.returncode == 1
    assert result.stderr == f"error: {file}: expected a file, found a git-lfs pointer to it; run `git lfs pull`\n"
    assert not (tmp_path / "dataset").exists()
