"""One of lm-eval's own tasks by its name, on a data set of ours: what the rules write is what lm-eval says."""

import json
from pathlib import Path

import lm_eval
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from int4_qat import models, tokenization
from programs import LFS_POINTER, run_script
from workflows import small_config, snakemake, write_config

pytestmark = pytest.mark.slow

ARC = Path(lm_eval.__file__).parent / "tasks" / "arc"
SIZES = {"train": 6, "validation": 2, "test": 10}
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
def report(untrained, arc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task run")
    config = small_config(untrained)
    config["evaluation"]["tasks"] = [TASK | {"source": str(arc), "batch_size": 4, "dtype": "float32"}]
    path = write_config(config, folder / "config.yaml")
    target = "results/demo/base-bf16/tasks/arc_challenge.json"
    result = snakemake(*("--profile", "profiles/demo", "--configfile", path, "--directory", folder, target))
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / target).read_text())


def test_the_numbers_are_lm_evals(untrained, arc, report, tmp_path):
    for name in ("arc_easy.yaml", "arc_challenge.yaml"):
        text = (ARC / name).read_text().replace("dataset_path: allenai/ai2_arc", f"dataset_path: {arc}")
        (tmp_path / name).write_text(text + f"\ndataset_kwargs: {{cache_dir: {tmp_path / 'cache'}}}\n")
    expected = lm_eval.simple_evaluate(
        HFLM(
            pretrained=models.load_model(untrained / "model", torch.float32, "cpu"),
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
