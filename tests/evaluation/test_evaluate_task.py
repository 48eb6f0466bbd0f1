"""One of lm-eval's own tasks by its name, on a data set of ours: what the rules write is what lm-eval says."""

import json
from pathlib import Path

import lm_eval
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import check_task
from int4_qat.data import mmlu
from int4_qat.engines import inference
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import LFS_POINTER, run_in_process, run_script
from workflows import planned, small_config, snakemake, write_config

pytestmark = pytest.mark.slow

ARC = Path(lm_eval.__file__).parent / "tasks" / "arc"
SIZES = {"train": 6, "validation": 2, "test": 10}
TARGET = "results/demo/base-bf16/tasks/arc_challenge.json"
METRIC = "resources/metrics/arc_challenge.json"
TASK = {"task": "arc_challenge", "metric": "acc_norm,none", "num_fewshot": 2, "limit": 8}


@pytest.fixture(scope="module")
def arc(untrained, tmp_path_factory):
    """A data set in the layout of allenai/ai2_arc, of the stand-in's questions."""
    folder = tmp_path_factory.mktemp("arc")
    questions = pq.read_table(untrained / "mmlu" / "all" / "test-00000-of-00001.parquet").to_pylist()
    (folder / "ARC-Challenge").mkdir()
    for split, size in SIZES.items():
        rows = [questions.pop() for _ in range(size)]
        table = [
            {
                "id": str(index),
                "question": row["question"],
                "choices": {"text": row["choices"], "label": list("ABCD")},
                "answerKey": "ABCD"[row["answer"]],
            }
            for index, row in enumerate(rows)
        ]
        pq.write_table(pa.Table.from_pylist(table), folder / "ARC-Challenge" / f"{split}-00000-of-00001.parquet")
    files = [{"split": split, "path": f"ARC-Challenge/{split}-*"} for split in SIZES]
    card = yaml.safe_dump({"configs": [{"config_name": "ARC-Challenge", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n")
    return folder


@pytest.fixture(scope="module")
def run(untrained, arc, tmp_path_factory):
    """Snakemake in a folder where one variant was asked one task, with changes of the task's settings."""
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
    assert "error: evaluation.tasks: arc_challenge has no metric 'acc_nrm,none'; expected acc,none or" in result.stderr
    assert planned(run("--dry-run")) == {"check_metric": 1}


def check(tmp_path, monkeypatch, **changes):
    """check_task's report, or the InputError with which it ends."""
    options = {"num_fewshot": 2, "task": "arc_challenge"} | changes
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    run_in_process(check_task, monkeypatch, *words, "--output", tmp_path / "checked.json")
    return json.loads((tmp_path / "checked.json").read_text())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "arc_challeng"}, "lm-eval 0.4.13 has no task or group 'arc_challeng'"),
        ({"num_fewshot": 7}, "arc_challenge: expected 7 or more rows for num_fewshot 7, found 6 in "),
        ({"task": "hellaswag"}, r"hellaswag does not fit .* \(KeyError: 'ctx_a'\)"),
    ],
)
def test_each_misfit_is_one_line(arc, tmp_path, monkeypatch, changes, expected):
    with pytest.raises(InputError, match=expected) as error:
        check(tmp_path, monkeypatch, dataset=arc, **changes)
    assert str(error.value).startswith("evaluation.tasks: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "checked.json").exists()


def truthful(folder):
    """A data set in the layout of truthfulqa/truthful_qa's multiple_choice, as lm-eval's task reads it."""
    targets = {"choices": ["yes", "no"], "labels": [1, 0]}
    rows = [{"question": f"{index}?", "mc1_targets": targets, "mc2_targets": targets} for index in range(4)]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "validation.parquet")
    files = [{"split": "validation", "path": "validation.parquet"}]
    card = yaml.safe_dump({"configs": [{"config_name": "multiple_choice", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n")
    return folder


def test_examples_that_a_task_does_not_take_are_refused(tmp_path, monkeypatch):
    """lm-eval leaves a task at 0 examples that says so itself."""
    folder = truthful(tmp_path / "truthful")
    options = {"dataset": folder, "task": "truthfulqa_mc2"}
    with pytest.raises(InputError, match="asks truthfulqa_mc2 with 0 examples whatever is set; expected num_fewshot 0"):
        check(tmp_path, monkeypatch, **options)
    assert check(tmp_path, monkeypatch, **options | {"num_fewshot": 0})["metrics"] == ["acc,none"]


def test_a_group_is_checked_by_the_figure_for_the_whole(untrained, tmp_path, monkeypatch):
    """MMLU's own group of 19 subjects, each a config of one data set."""
    folder, configs = tmp_path / "mmlu", []
    for subject in mmlu.SUBJECTS:
        (folder / subject).mkdir(parents=True)
        files = []
        for split in ("dev", "validation", "test"):
            rows = pq.read_table(untrained / "mmlu" / "all" / f"{split}-00000-of-00001.parquet")
            rows = rows.filter(pc.equal(rows["subject"], subject))
            pq.write_table(rows, folder / subject / f"{split}.parquet")
            files.append({"split": split, "path": f"{subject}/{split}.parquet"})
        configs.append({"config_name": subject, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    report = check(tmp_path, monkeypatch, dataset=folder, task="mmlu_stem", num_fewshot=1)
    assert report["metrics"] == ["acc,none"]
    assert len(report["members"]) == 19


def test_the_numbers_are_lm_evals(untrained, arc, report, tmp_path):
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
    )["results"]["arc_challenge"]
    assert report["metrics"].keys() == {"acc,none", "acc_norm,none"}
    for name, found in report["metrics"].items():
        assert found["value"] == pytest.approx(expected[name])
        assert found["stderr"] == pytest.approx(expected[name.replace(",", "_stderr,")])
    assert report["questions"] == 8
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
    assert result.stderr == f"error: {file}: expected the file, found git-lfs's pointer to it; run `git lfs pull`\n"
    assert not (tmp_path / "dataset").exists()
