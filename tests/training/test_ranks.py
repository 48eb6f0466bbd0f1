"""Test that a training in two processes takes the same steps as a training in one."""

import functools
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

import families
import finetune
from int4_qat.config.recipe import Recipe
from int4_qat.quantization import grids
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from int4_qat.training import data, ranks, run, sharding
from int4_qat.training.backends import transformers
from programs import RECIPE, ROOT, finetune_options, run_script, seen, training_options

DISTILLED = {"weight": 0.5, "tokens": "all", "temperature": 2.0}
MERGED = seen() | {"qat_target": "merged"}
TRAININGS = {
    "cross-entropy": {},
    "merged, learned, distilled, measured": MERGED
    | {"distillation": DISTILLED, "grid_learning_rate": 1e-3, "eval_steps": 2, "gradient_checkpointing": True},
}


def trained(untrained, texts, folder, processes, *more, **changes):
    """Run a training, and return its table, its adapter and its grids."""
    folder.mkdir()
    options = finetune_options(untrained, texts, folder, **changes)
    result = run_script("finetune", *options, "--processes", processes, "--allow-worse", 1, *more, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    adapter = folder / "adapter"
    return pd.read_csv(folder / "training.csv"), load_file(adapter / "adapter_model.safetensors"), grids.read(adapter)


@pytest.fixture(scope="module")
def in_one_process(untrained, texts, tmp_path_factory):
    """Return a function that runs a training in one process, once for all tests that compare with it."""

    @functools.cache
    def run(training, family):
        folder = tmp_path_factory.mktemp("one")
        standin = untrained
        if family:
            standin = families.write(family, untrained / "model", folder / "family" / "model").parent
        return standin, trained(standin, texts, folder / "one", 1, **steps_of(training))

    return run


def steps_of(training):
    return TRAININGS[training] | {"max_steps": 4, "save_steps": 4}


@pytest.mark.parametrize(
    ("training", "family", "more"),
    [
        ("cross-entropy", None, []),
        pytest.param("cross-entropy", None, ["--spread", "always"], marks=pytest.mark.slow),
        pytest.param("merged, learned, distilled, measured", None, [], marks=pytest.mark.slow),
        pytest.param("merged, learned, distilled, measured", None, ["--spread", "always"], marks=pytest.mark.slow),
        # Here the module around the layers is also the body whose states the head reads.
        pytest.param("merged, learned, distilled, measured", "llama", ["--spread", "always"], marks=pytest.mark.slow),
    ],
)
def test_two_processes_take_the_steps_of_one(in_one_process, texts, tmp_path, training, family, more):
    standin, (table, adapter, learned) = in_one_process(training, family)
    other, other_adapter, other_learned = trained(standin, texts, tmp_path / "two", 2, *more, **steps_of(training))
    columns = [name for name in table if name not in ("tokens_per_second", "peak_memory_gb", "held_out_seconds")]
    pd.testing.assert_frame_equal(table[columns], other[columns], rtol=1e-4)
    assert adapter.keys() == other_adapter.keys()
    for name, tensor in adapter.items():
        torch.testing.assert_close(other_adapter[name], tensor, rtol=1e-5, atol=1e-5)
    assert learned.keys() == other_learned.keys()
    for name, grid in learned.items():
        for tensor, other in zip(grid, other_learned[name], strict=True):
            torch.testing.assert_close(other, tensor, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_processes_with_unequal_parts_take_the_steps_of_one(untrained, tmp_path):
    """One process has long texts, in three parts per step; the other has short texts, in one part."""
    turns = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\nAnswer: A<end_of_turn>\n"
    lengths = [450 if number % 16 < 8 else 10 for number in range(64)]
    texts = tmp_path / "texts.parquet"
    words = [
        turns.format(" ".join(f"w{(number * 7 + at) % 50}" for at in range(n))) for number, n in enumerate(lengths)
    ]
    pq.write_table(pa.table({"text": words}), texts)
    changes = {"max_steps": 2, "save_steps": 2, "train_batch_size": 16, "learning_rate": 1e-4}
    table, adapter, _ = trained(untrained, texts, tmp_path / "one", 1, **changes)
    for spread in ("auto", "always"):
        other, other_adapter, _ = trained(untrained, texts, tmp_path / spread, 2, "--spread", spread, **changes)
        assert other["loss"].tolist() == pytest.approx(table["loss"].tolist(), rel=1e-4)
        for name, tensor in adapter.items():
            torch.testing.assert_close(other_adapter[name], tensor, rtol=1e-4, atol=1e-5)


def test_an_adapter_that_is_not_finite_is_one_line():
    linear = torch.nn.Linear(2, 2)
    run.refuse_not_finite(linear)
    torch.nn.init.constant_(linear.bias, torch.nan)
    with pytest.raises(InputError, match="finetune: bias: expected finite numbers after training, found others"):
        run.refuse_not_finite(linear)


def test_a_batch_that_cannot_be_shared_is_one_line(untrained, texts, tmp_path):
    options = finetune_options(untrained, texts, tmp_path, train_batch_size=7)
    result = run_script("finetune", *options, "--processes", 2)
    assert result.returncode == 1
    assert "finetune.train_batch_size: expected a multiple of 2 GPUs x 1 passes, found 7" in result.stderr
    expected = "error: finetune.train_batch_size: expected a multiple of 2 GPUs x 1 passes, found 7"
    assert result.stderr.strip().splitlines()[-1] == expected


@pytest.mark.slow
def test_a_training_without_a_full_batch_is_one_line(untrained, texts, tmp_path):
    """transformers itself would end it before the first step, without an error."""
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(texts).slice(0, 7), few)
    result = run_script("finetune", *finetune_options(untrained, few, tmp_path), "--processes", 2)
    assert result.returncode == 1
    expected = "found too few: the training ended after step 0 of 12"
    assert result.stderr.strip().splitlines()[-1].endswith(expected)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("saved", [True, False])
def test_a_signal_before_the_last_step_is_an_error(monkeypatch, tmp_path, saved):
    """A signal can come before the ranks have made the folder of the checkpoints."""
    monkeypatch.setattr(ranks, "launch", lambda *_: "SIGINT")
    if saved:
        (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
        (tmp_path / "checkpoints" / "checkpoint-4" / "whole").touch()
    then = "resumes from the last checkpoint" if saved else "begins with the first step"
    with pytest.raises(InputError, match=f"finetune: stopped by SIGINT; the next run {then}"):
        finetune.launch(2, {"device": "cpu", "adapter": tmp_path / "adapter", "checkpoints": tmp_path / "checkpoints"})


def started(options):
    """Start a training in two processes, and return its process once they have taken a step."""
    command = [sys.executable, ROOT / "scripts" / "finetune.py", *options, "--processes", 2]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while "1/400" not in process.stdout.readline():
        assert process.poll() is None
    return process


def left_over(folder):
    """Return the ids of the processes whose command line names a folder."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_all_stop_with_one_checkpoint_and_fewer_go_on(untrained, texts, tmp_path, first):
    """SIGTERM, sent to the launcher or to one of the two ranks, stops all of them with one checkpoint."""
    changes = {"max_steps": 400, "save_steps": 400, "learning_rate": 1e-4}
    options = finetune_options(untrained, texts, tmp_path, **changes)
    process = started(options)
    ranks = [child for child in psutil.Process(process.pid).children() if "finetune.py" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    os.kill(process.pid if first else ranks[1].pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.match("error: .*stopped by SIGTERM", output.strip().splitlines()[-1])
    (checkpoint,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    assert (checkpoint / "whole").exists()
    assert left_over(tmp_path) == []
    step = int(checkpoint.name.rpartition("-")[2])
    assert 1 <= step < 400


@pytest.mark.slow
def test_one_that_dies_ends_the_others(untrained, texts, tmp_path):
    options = finetune_options(untrained, texts, tmp_path, max_steps=400, save_steps=400)
    process = started(options)
    children = psutil.Process(process.pid).children()
    begun = time.monotonic()
    max(children, key=lambda child: child.pid).kill()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert process.returncode == 1
    assert output.strip().splitlines()[-1] == "error: finetune: process 1 of 2 failed with exit code -9"
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_a_killed_launcher_leaves_a_checkpoint_and_no_process(untrained, texts, tmp_path):
    process = started(finetune_options(untrained, texts, tmp_path, max_steps=400, save_steps=400))
    ranks = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert alive == []
    (checkpoint,) = (tmp_path / "checkpoints").glob("checkpoint-*")
    assert (checkpoint / "whole").exists()


@pytest.mark.slow
def test_a_training_goes_on_in_another_number_of_processes(untrained, texts, tmp_path):
    changes = {"save_steps": 2, "max_steps": 6, "logging_steps": 1}
    whole = trained(untrained, texts, tmp_path / "whole", 1, **changes)
    folder = tmp_path / "stopped"
    folder.mkdir()
    options = finetune_options(untrained, texts, folder, **changes)
    (folder / "file").touch()
    failed = run_script("finetune", *options[:-1], folder / "file" / "training.csv", "--processes", 2)
    assert failed.returncode == 1
    checkpoints = sorted((folder / "checkpoints").glob("checkpoint-*"))
    for checkpoint in checkpoints[1:]:
        (checkpoint / "whole").unlink()
    resumed = run_script("finetune", *options)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert f"resuming from {checkpoints[0]}" in resumed.stdout
    table = pd.read_csv(folder / "training.csv")
    assert table["loss"].tolist() == pytest.approx(whole[0]["loss"].tolist(), rel=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_of_a_spread_model_only_the_layer_that_computes_is_whole(untrained, checkpointing):
    model = transformers.add_adapters(untrained / "model", Recipe(**RECIPE), "cpu").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        sharding.spread(model, "cpu")
        layers, whole = list(sharding.layers(model.get_base_model())), []

        def count(*_):
            whole.append(sum(not sharding.is_spread(layer) for layer in layers))

        for layer in layers:
            layer.self_attn.register_forward_pre_hook(count)
            layer.self_attn.register_full_backward_hook(count)
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    finally:
        distributed.destroy_process_group()
    passes = 3 if checkpointing else 2
    assert whole == [1] * passes * (len(layers) - 1)  # the picture tower's layer does not compute


def test_a_spread_model_computes_in_autocast_without_its_gradients_being_gathered(untrained, texts, tmp_path):
    """accelerate's prepare_model would do both, but our trainer averages the gradients of spread weights."""
    recipe = Recipe(**RECIPE | {"max_steps": 1})
    options = training_options(untrained, texts, tmp_path)._replace(spread="always")
    model = transformers.add_adapters(options.model, recipe, "cpu")
    tokenizer = tokenization.load_tokenizer(options.model)
    rows = data.tokenize(options.texts, tokenizer, recipe, tmp_path)
    accelerator = transformers.make_trainer(model, tokenizer, rows, recipe, options).accelerator
    accelerator.native_amp, before = True, accelerator.state._mixed_precision
    accelerator.state._mixed_precision = "bf16"
    try:
        prepared = accelerator.prepare_model(model)
    finally:
        accelerator.state._mixed_precision = before
    assert prepared is model
    ids = torch.tensor([[5, 6, 7]])
    found = []
    model.get_base_model().register_forward_pre_hook(lambda *_: found.append(torch.is_autocast_enabled("cpu")))
    prepared(input_ids=ids)
    assert found == [True]
