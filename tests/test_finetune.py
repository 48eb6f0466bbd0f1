"""What is learned, what is refused, and that a killed training ends with the same bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization.qat import FakeQuantizedLinear

import finetune
from conftest import RECIPE, ROOT, run_script
from int4_qat import int4, models, qat
from int4_qat.errors import InputError


@pytest.fixture(scope="module")
def texts(untrained, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "train.parquet"
    source = untrained / "mmlu" / "all" / "auxiliary_train-00000-of-00001.parquet"
    result = run_script("format_mmlu", "--mmlu", source, "--tokenizer", untrained / "model", "--output", path)
    assert result.returncode == 0, result.stderr
    return path


def arguments(untrained, texts, folder, **changes):
    return [
        *("--model", untrained / "model", "--texts", texts, "--recipe", json.dumps(RECIPE | changes)),
        *("--checkpoints", folder / "checkpoints"),
        *("--adapter", folder / "adapter", "--log-table", folder / "training.csv"),
    ]


def adapter_bytes(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_tokens_and_labels_are_the_cards(untrained, texts, tmp_path):
    tokenizer = models.load_tokenizer(untrained / "model")
    data = finetune.tokenize(texts, tokenizer, finetune.Recipe(**RECIPE), str(tmp_path))
    for text, row in zip(pq.read_table(texts)["text"].to_pylist(), data, strict=True):
        # independently: two halves of the text, tokenized apart; nothing after the newline, no eos
        head, answer = text.split("<start_of_turn>model\n")
        head_tokens = tokenizer(head + "<start_of_turn>model\n")["input_ids"]
        answer_tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert head_tokens[0] == tokenizer.bos_token_id
        assert row["input_ids"] == head_tokens + answer_tokens
        assert row["labels"] == [-100] * len(head_tokens) + answer_tokens
        assert tokenizer.decode(answer_tokens).endswith(".<end_of_turn>\n")


def test_labels_of_several_turns():
    user, model = [1, 2], [1, 3]
    tokens = [0, 1, 2, 9, 1, 3, 7, 8, 1, 2, 9, 1, 3, 6]
    masked = -100
    expected = [masked] * 6 + [7, 8] + [masked] * 5 + [6]
    assert finetune.response_labels(tokens, user, model) == expected


def test_a_row_without_an_answer_is_named(untrained, texts, tmp_path):
    rows = pq.read_table(texts)["text"].to_pylist()[:3]
    rows[1] = rows[1].split("<start_of_turn>model")[0]
    broken = tmp_path / "broken.parquet"
    pq.write_table(pa.table({"text": rows, "subject": ["anatomy"] * 3}), broken)
    result = run_script("finetune", *arguments(untrained, broken, tmp_path))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "broken.parquet, row 2: no token counts in the loss" in last
    assert not (tmp_path / "adapter").exists()


def test_qat_rounds_the_frozen_linears_as_the_export_does(untrained):
    recipe = dataclasses.replace(finetune.Recipe(**RECIPE), qat_scheme="int4")
    model = finetune.add_adapters(untrained / "model", recipe, "cpu")
    placed = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLinear)}
    assert len(placed) == 3 * 7
    assert all(name.endswith(".base_layer") and "language_model" in name for name in placed)
    for module in placed.values():
        used = module.weight_fake_quantizer(module.weight)
        assert torch.equal(used, int4.dequantize(int4.quantize(module.weight, 64)))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name and "language_model" in name for name in trainable)


def test_qat_without_a_layer_is_refused(untrained):
    model = models.load_model(untrained / "model", torch.float32, "cpu")
    with pytest.raises(InputError, match="no layer could be fake-quantized"):
        qat.fake_quantize_base_linears(model, 64)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], exclude_modules=finetune.VISION_MODULES))
    with pytest.raises(InputError, match=r"group_size: 128 does not divide the 64 inputs of .*q_proj"):
        qat.fake_quantize_base_linears(model, 128)


def test_a_parameter_without_gradient_is_an_error(untrained, texts, tmp_path, monkeypatch):
    recipe = finetune.Recipe(**RECIPE)
    model = finetune.add_adapters(untrained / "model", recipe, "cpu")
    unused = torch.nn.Parameter(torch.ones(3))
    model.register_parameter("unused", unused)
    tokenizer = models.load_tokenizer(untrained / "model")
    data = finetune.tokenize(texts, tokenizer, recipe, str(tmp_path))
    options = type("Options", (), {"device": "cpu", "checkpoints": tmp_path / "checkpoints"})
    with pytest.raises(InputError, match="unused is trainable and got no gradient"):
        finetune.make_trainer(model, tokenizer, data, recipe, options).train()


def test_killed_and_resumed_gives_the_same_bytes(untrained, texts, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_script("finetune", *arguments(untrained, texts, whole, qat_scheme="int4"))
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(whole / "training.csv")
    assert table["step"].tolist() == list(range(1, 13))
    assert not (whole / "checkpoints").exists()

    command = [sys.executable, str(ROOT / "scripts" / "finetune.py")]
    command += map(str, arguments(untrained, texts, killed, qat_scheme="int4"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((killed / "checkpoints").glob("checkpoint-*/whole")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "adapter").exists()
    (checkpoint, *_) = sorted((killed / "checkpoints").glob("checkpoint-*"))
    (killed / "checkpoints" / "checkpoint-11").mkdir()  # cut off while it was being written

    result = run_script("finetune", *arguments(untrained, texts, killed, qat_scheme="int4"))
    assert result.returncode == 0, result.stderr
    assert int(checkpoint.name.rpartition("-")[2]) < 12
    assert adapter_bytes(killed) == adapter_bytes(whole)
    resumed = pd.read_csv(killed / "training.csv")
    assert resumed["loss"].tolist() == table["loss"].tolist()


def test_checkpoints_of_other_settings_are_not_used(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "whole").touch()
    finetune.prepare_checkpoints(tmp_path, {"learning_rate": 1})
    assert finetune.last_whole(tmp_path) is None
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "whole").touch()
    finetune.prepare_checkpoints(tmp_path, {"learning_rate": 1})
    assert finetune.last_whole(tmp_path).endswith("checkpoint-8")
    finetune.prepare_checkpoints(tmp_path, {"learning_rate": 2})
    assert finetune.last_whole(tmp_path) is None
