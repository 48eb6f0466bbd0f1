"""Replicas of a model that share an evaluation give the same results as one model."""

import functools
import os
import signal
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from int4_qat.evaluation import replicas
from int4_qat.system.errors import InputError
from programs import run_script


def evaluate(model, mmlu, folder, *more):
    folder.mkdir()
    result = run_script(
        "evaluate_mmlu",
        *("--checkpoint", model, "--mmlu", mmlu, "--num-fewshot", 0, "--limit", 3, "--batch-size", 4),
        *("--engine", "last_position", "--dtype", "float32"),
        *("--output", folder / "shard.json", "--samples", folder / "shard.parquet", *more),
    )
    return result, [path.read_bytes() for path in sorted(folder.iterdir())]


def test_two_replicas_write_the_bytes_of_one(untrained, mmlu_folder, tmp_path):
    (one, files), (two, others) = (
        evaluate(untrained / "model", mmlu_folder, tmp_path / str(gpus), "--gpus", gpus) for gpus in (1, 2)
    )
    assert one.returncode == two.returncode == 0, two.stderr
    assert len(files) == 2
    assert others == files


def asked(*documents):
    """Return the requests of tasks with the given numbers of documents, four choices each, ordered by task."""
    return [
        SimpleNamespace(task_name=f"task {task}", doc_id=document)
        for task, count in enumerate(documents)
        for document in range(count)
        for _ in range(4)
    ]


@pytest.mark.parametrize("documents", [(3, 5, 2, 7), (9,), (1,), (5, 5)])
def test_tasks_stay_whole_if_there_are_enough(documents):
    requests = asked(*documents)
    units = list(replicas.units(requests, 2))
    assert sorted(number for unit in units for number in unit) == list(range(len(requests)))
    documents_of = [{(requests[number].task_name, requests[number].doc_id) for number in unit} for unit in units]
    assert sum(map(len, documents_of)) == sum(documents), "no document is divided"
    if len(documents) >= 4:
        assert len(units) == len(documents)
    elif sum(documents) > 1:
        assert len(units) == 2 * len(documents)


def test_an_error_of_a_replica_is_one_line(untrained, mmlu_folder, tmp_path):
    folder = tmp_path / "two"
    model = tmp_path / "model"
    model.mkdir()
    for path in (untrained / "model").iterdir():
        if path.suffix != ".safetensors":
            (model / path.name).write_bytes(path.read_bytes())
    (model / "model.safetensors").write_bytes(b"x" * 100)
    result, _ = evaluate(model, mmlu_folder, folder, "--gpus", 2)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: {model}: ")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_replica_is_one_line():
    with pytest.raises(InputError, match=r"^score: a process was killed, probably because memory ran out$"):
        replicas.Replicas(killed, ["", ""])


class Engine:
    """An engine that records each task that it is given, fails at `task 0` and scores the others slowly."""

    max_length, stock_check = 100, None

    def __init__(self, seen):
        self.seen, self.prompts_over_max_length = seen, Counter()

    def scores(self, requests, disable_tqdm):
        with self.seen.open("a") as seen:
            seen.write(f"{requests[0].task_name}\n")
        if requests[0].task_name == "task 0":
            raise InputError("task 0: expected something else")
        time.sleep(0.3)
        return [(-1.0 - number, False) for number, _ in enumerate(requests)]


def test_an_error_of_a_replica_ends_the_others_after_their_task(tmp_path):
    seen = tmp_path / "seen"
    both = replicas.Replicas(functools.partial(Engine, seen), ["", ""])
    with pytest.raises(InputError, match=r"^task 0: expected something else$"):
        both.loglikelihood(asked(9, *[3] * 20))
    assert len(seen.read_text().split("\n")) < 10
