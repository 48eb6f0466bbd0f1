"""Test the unsloth backend with unsloth's own model, fake quantization, tokens and trainer, as far as a CPU allows."""

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import make_standin
from int4_qat.config import limits
from int4_qat.data import mmlu
from int4_qat.quantization import schemes
from int4_qat.standin import gemma_folder, standin
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from int4_qat.training import collation
from int4_qat.training.backends import unsloth
from programs import RECIPE, ROOT, environment, finetune_options, quantize_options, run_script, seen

INT4 = schemes.int4(128)  # the only scheme that unsloth trains
QAT = RECIPE | seen(INT4) | {"qat_target": "base+lora_a", "max_steps": 6, "save_steps": 2}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Write an untrained stand-in whose linears hold whole groups of 128, and its training texts; return the folder."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    facts = standin.invent_families(4, 10, random.Random(0))
    sizes = {"auxiliary_train": 64, "dev": 57, "validation": 57, "test": 57}
    questions = standin.ask(facts, mmlu.SUBJECTS, sizes, seed=1)
    tokenizer = make_standin.make_tokenizer(questions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_standin, "HIDDEN", 128)
        gemma_folder.write_model(make_standin.make_model(len(tokenizer)), tokenizer, folder / "model")
    make_standin.write_dataset(questions, folder / "mmlu" / "all")
    download = run_script("download_mmlu", "--source", folder / "mmlu", "--output", folder / "data")
    assert download.returncode == 0, download.stderr
    options = ["--tokenizer", folder / "model", "--output", folder / "train.parquet"]
    result = run_script("format_mmlu", "--mmlu", folder / "data" / "auxiliary_train.parquet", *options)
    assert result.returncode == 0, result.stderr
    return folder


def arguments_of(wide, folder, recipe):
    outputs = {"checkpoints": folder / "checkpoints", "adapter": folder / "adapter", "log-table": folder / "steps.csv"}
    inputs = {"model": wide / "model", "texts": f"questions={wide / 'train.parquet'}", "recipe": json.dumps(recipe)}
    return [word for name, value in (inputs | outputs).items() for word in (f"--{name}", value)]


def start(wide, folder, recipe):
    """Start scripts/finetune.py in unsloth's environment, with a shim that answers its questions about the GPU."""
    variables = environment("unsloth") | {"UNSLOTH_COMPILE_LOCATION": str(wide / "compiled")}
    python = shutil.which("python", path=variables["PATH"])
    shim = str(ROOT / "tests" / "shims" / "unsloth_without_gpu.py")
    line = [python, shim, *map(str, arguments_of(wide, folder, recipe))]
    return subprocess.Popen(line, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope="module")
def trained(wide, tmp_path_factory):
    """Run a training without interruption, and return its folder."""
    folder = tmp_path_factory.mktemp("unsloth")
    output = finish(start(wide, folder, QAT | {"backend": "unsloth"}))
    assert "fake quantization (unsloth's, group size 128) on 21 linears" in output
    assert "Padding-free" not in output
    assert "cuDNN's attention: False" in output  # it would plan each length of a batch
    return folder


@pytest.mark.slow
def test_unsloth_trains_as_the_other_backend_does(wide, trained, tmp_path):
    other = run_script("finetune", *arguments_of(wide, tmp_path, QAT))
    assert other.returncode == 0, other.stderr[-3000:]
    assert (trained / "adapter" / "qat.json").read_text() == (tmp_path / "adapter" / "qat.json").read_text()
    steps, expected = (pd.read_csv(folder / "steps.csv") for folder in (trained, tmp_path))
    assert list(steps) == list(expected)
    assert steps["learning_rate"].tolist() == pytest.approx(expected["learning_rate"].tolist())
    assert steps["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=0.005)
    assert steps["grad_norm"].tolist() == pytest.approx(expected["grad_norm"].tolist(), rel=0.02)
    found, wanted = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (trained, tmp_path))
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in wanted.items()}


def test_unsloth_gets_no_more_tokens_than_a_part(monkeypatch):
    monkeypatch.setattr(collation, "PART", 20)
    taken = []

    def step(model, part, labels_of_step):
        taken.append((model, tuple(part["input_ids"].shape), labels_of_step))
        return torch.tensor(float(len(taken)))

    ids = torch.nn.utils.rnn.pad_sequence([torch.ones(n, dtype=torch.long) for n in (3, 12, 4, 5)], batch_first=True)
    batch = {"input_ids": ids, "attention_mask": ids}
    assert unsloth.step_in_parts(step, "model", batch, torch.tensor(9)) == 1 + 2
    assert taken == [("model", (1, 12), 9), ("model", (3, 5), 9)]
    with pytest.raises(InputError, match="expected a loss that unsloth divides by the labels of a step, found a mean"):
        unsloth.step_in_parts(step, "model", batch, None)


@pytest.mark.slow
def test_a_batch_of_more_tokens_than_a_part_is_one_step(wide, tmp_path):
    texts = pd.read_parquet(wide / "train.parquet")
    user = "<start_of_turn>user\n"
    texts["text"] = [
        text.replace(user, user + " ".join(text.split()[2:12]) * (number % 9))
        for number, text in enumerate(texts["text"])
    ]
    texts.to_parquet(tmp_path / "train.parquet", index=False)
    (tmp_path / "model").symlink_to(wide / "model")
    tokenizer = tokenization.load_tokenizer(wide / "model")
    lengths = list(map(len, tokenizer(texts["text"].tolist())["input_ids"]))
    assert len(set(lengths)) > 8
    assert sum(lengths) > collation.PART
    recipe = QAT | {"train_batch_size": len(lengths), "max_steps": 2}
    for name in ("unsloth", "other"):
        (tmp_path / name).mkdir()
    finish(start(tmp_path, tmp_path / "unsloth", recipe | {"backend": "unsloth"}))
    other = run_script("finetune", *arguments_of(tmp_path, tmp_path / "other", recipe))
    assert other.returncode == 0, other.stderr[-3000:]
    steps, expected = (pd.read_csv(tmp_path / name / "steps.csv") for name in ("unsloth", "other"))
    for column, tolerance in (("loss", 0.005), ("grad_norm", 0.02)):
        assert steps[column].tolist() == pytest.approx(expected[column].tolist(), rel=tolerance)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_adapter(wide, trained, tmp_path):
    process = start(wide, tmp_path, QAT | {"backend": "unsloth"})
    end = time.monotonic() + 400
    while not list(tmp_path.glob("checkpoints/checkpoint-*/whole")) and time.monotonic() < end:
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (tmp_path / "adapter").exists()
    assert "resuming from " in finish(start(wide, tmp_path, QAT | {"backend": "unsloth"}))
    found, expected = (path / "adapter" / "adapter_model.safetensors" for path in (tmp_path, trained))
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.slow
def test_its_adapter_is_merged_exported_and_compared_as_any_other(wide, trained, tmp_path):
    merged, exported, parity = tmp_path / "merged", tmp_path / "int4", tmp_path / "parity.json"
    model, adapter = ["--model", wide / "model"], ["--adapter", trained / "adapter"]
    quantize = [*quantize_options(INT4), "--output", exported]
    texts = ["--texts", wide / "train.parquet", "--output", parity]
    for name, *arguments in (
        ("merge", *model, *adapter, "--output", merged),
        ("quantize", "--checkpoint", merged, *quantize),
        ("check_parity", *model, *adapter, "--checkpoint", exported, *texts),
    ):
        result = run_script(name, *arguments)
        assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(parity.read_text())["weights_that_differ"] == 0


@pytest.mark.slow
def test_a_linear_that_unsloth_leaves_out_ends_the_training(untrained, wide, tmp_path):
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    (narrow / "model").symlink_to(untrained / "model")
    (narrow / "train.parquet").symlink_to(wide / "train.parquet")
    process = start(narrow, tmp_path, QAT | {"backend": "unsloth"})
    output = process.communicate(timeout=600)[0]
    assert process.returncode != 0
    line = "error: group_size: expected a divisor of the 64 inputs of model.language_model.layers.0."
    assert line in output.splitlines()[-1]
    assert not (tmp_path / "adapter").exists()


def test_without_a_gpu_it_refuses(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    recipe = {"backend": "unsloth"}
    variables = os.environ | {"UNSLOTH_ALLOW_CPU": "1"}
    result = run_script("finetune", *finetune_options(tmp_path, tmp_path, tmp_path, **recipe), env=variables)
    assert (result.returncode, result.stderr) == (
        1,
        "error: finetune.backend: expected a GPU for unsloth, found none\n",
    )


def test_cuda_is_not_started_before_a_gpu_is_claimed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("starts CUDA"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="expected a GPU for unsloth, found none"):
        unsloth.prepare()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"qat_target": "base"}, "qat_target: expected 'base+lora_a' with backend unsloth, found 'base'"),
        *(
            (seen(scheme), f"quantization: expected {INT4}, with backend unsloth, found {scheme}")
            for scheme in [schemes.int4(64), schemes.int4(128, schemes.INTEGER), schemes.int4(128, None)]
        ),
        ({"start": "gptq"}, "start: expected null, since unsloth cannot train on given grids, found 'gptq'"),
        (
            {"start": None, "eval_steps": 10},
            "eval_steps: expected null with backend unsloth, found 10",
        ),
        ({"packing": True}, "packing: expected false, since unsloth trains on questions row by row, found true"),
    ],
)
def test_what_it_cannot_do_is_one_line(change, problem):
    recipe = QAT | {"backend": "unsloth"}
    assert limits.unsloth_misfits(recipe, "cuda") == []
    assert limits.unsloth_misfits(recipe | change, "cuda") == [problem]
    assert limits.unsloth_misfits(recipe | change | {"backend": "transformers"}, "cuda") == []
    assert limits.unsloth_misfits(recipe, "cpu") == ["backend: expected device 'cuda' for unsloth, found 'cpu'"]


@pytest.mark.parametrize("column", ["input_ids", "labels"])
def test_other_tokens_or_labels_are_an_error(column):
    row = {"input_ids": [2, 5, 1], "labels": [-100, 5, 1]}
    other = row | {column: [2, 5, 9]}
    unsloth.check_rows([row, row], [row, row], Path("t"))
    with pytest.raises(InputError, match=rf"t, row 2: expected the {column} of backend tr"):
        unsloth.check_rows([row, other], [row, row], Path("t"))
    with pytest.raises(InputError, match="expected 2 rows, found 1 in unsloth"):
        unsloth.check_rows([row], [row, row], Path("t"))
