"""The profile sets how many GPUs a training gets; an arm that cannot use them is reported when a run is planned."""

import re

import pytest

from int4_qat.config import limits
from programs import RECIPE
from workflows import demo


@pytest.mark.parametrize(
    ("changes", "processes", "expected"),
    [
        ({}, 1, []),
        ({}, 2, []),
        ({"train_batch_size": 7}, 1, []),
        ({"train_batch_size": 7}, 2, ["train_batch_size: expected a multiple of 2 GPUs x 1 passes, found 7"]),
        (
            {"gradient_accumulation_steps": 3},
            1,
            ["train_batch_size: expected a multiple of 1 GPUs x 3 passes, found 8"],
        ),
        ({"gradient_accumulation_steps": 4}, 2, []),
        (
            {"backend": "unsloth"},
            2,
            ["backend: expected transformers on 2 GPUs, since unsloth trains on one, found unsloth"],
        ),
        ({"backend": "unsloth"}, 1, []),
    ],
)
def test_what_cannot_be_shared(changes, processes, expected):
    assert list(limits.unshared(RECIPE | changes, processes)) == expected


def test_the_profile_gives_a_training_its_gpus(tmp_path):
    result = demo(tmp_path, "--dry-run", "--printshellcmds", "--set-resources", "finetune:gpu=2")
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"finetune\.py .* --processes 2 ", result.stdout)) == 3
    refused = demo(tmp_path, "--dry-run", "--set-resources", "finetune:gpu=3")
    assert refused.returncode == 1
    expected = "expected a multiple of 3 GPUs x 1 passes, found"
    assert re.findall(rf"config error: finetune\.arms\.(\w+)\.train_batch_size: {expected} (\d+)", refused.stderr) == [
        ("lora", "32"),
        ("qad", "16"),
        ("qat", "32"),
    ]


def test_a_stage_that_takes_one_gpu_is_given_no_more(tmp_path):
    result = demo(tmp_path, "--dry-run", "--set-resources", "calibrate:gpu=2", "measure_memory:gpu=1")
    assert result.returncode == 1
    assert re.findall("config error: .*", result.stderr) == ["config error: calibrate: expected gpu: 1, found 2"]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["measure_latency:gpu=2"], "measure_latency: expected gpu: 1, found 2"),
        (["finetune:gpu=0"], "finetune: expected gpu: 1 or more, found 0"),
        (
            ["evaluate_mmlu:gpu=4", "--resources", "gpu=2"],
            "evaluate_mmlu: expected gpu: 2 or less, as in `resources`, found 4",
        ),
    ],
)
def test_gpus_that_a_stage_cannot_use_are_a_line(tmp_path, more, line):
    """Without this check, Snakemake would silently give the job as many GPUs as there are."""
    result = demo(tmp_path, "--dry-run", "--set-resources", *more)
    assert result.returncode == 1
    assert re.findall("config error: (.*)", result.stderr) == [line]


def test_the_old_key_names_the_new_one(tmp_path):
    old = "finetune={per_device_train_batch_size: 8}"
    result = demo(tmp_path, "--dry-run", "--config", old)
    assert "config error: finetune.per_device_train_batch_size: expected `train_batch_size`" in result.stderr
