"""What is learned, what is refused, and that a killed training ends with the same bytes."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torchao.quantization import quantize_
from torchao.quantization.qat import FakeQuantizedLinear, QATConfig
from torchao.quantization.qat.fake_quantize_config import Int4WeightFakeQuantizeConfig

import finetune
from conftest import RECIPE, ROOT, SKIP, run_script
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


def adapted_model(untrained, **changes):
    """A model as it trains, with adapters that are not zero."""
    model = finetune.add_adapters(untrained / "model", finetune.Recipe(**RECIPE | changes), "cpu")
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def layers_of(model, name):
    return [module for path, module in model.named_modules() if path.endswith(name)]


INPUT = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


def test_base_sees_the_frozen_weight_as_torchaos_fake_quantizer_does(untrained):
    plain, model = adapted_model(untrained), adapted_model(untrained, qat_scheme="int4")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name and "language_model" in name for name in trainable)
    config = Int4WeightFakeQuantizeConfig(group_size=64, activation_dtype=torch.bfloat16)
    for ours, theirs in zip(layers_of(model, "gate_proj"), layers_of(plain, "gate_proj"), strict=True):
        quantize_(theirs, QATConfig(weight_config=config, step="prepare"), lambda m, n: n == "base_layer")
        assert isinstance(theirs.base_layer, FakeQuantizedLinear)
        # torchao keeps scale and zero point in fp32, a checkpoint has them in bfloat16
        torch.testing.assert_close(ours(INPUT), theirs(INPUT), rtol=0.02, atol=0.02)
        deployed = int4.dequantize(int4.quantize(theirs.base_layer.weight, 64))
        assert torch.equal(ours.base_layer.weight, deployed)


def test_merged_computes_with_what_is_deployed(untrained, tmp_path):
    model = adapted_model(untrained, qat_scheme="int4", qat_target="merged")
    model.save_pretrained(tmp_path / "adapter")
    paths = ["--model", untrained / "model", "--adapter", tmp_path / "adapter", "--output", tmp_path / "bf16"]
    assert run_script("merge", *paths).returncode == 0
    options = ["--scheme", "int4", "--packing", "plain", "--group-size", 64, "--skip", *SKIP]
    assert (
        run_script("quantize", "--checkpoint", tmp_path / "bf16", *options, "--output", tmp_path / "int4").returncode
        == 0
    )
    deployed = models.load_model(tmp_path / "int4", torch.float32, "cpu")
    tokens = torch.randint(10, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, deployed(input_ids=tokens).logits)
        base = adapted_model(untrained, qat_scheme="int4")
        assert not torch.allclose(base(input_ids=tokens).logits, deployed(input_ids=tokens).logits, rtol=1e-3)


def test_the_gradient_of_merged_is_autograds(untrained):
    """Against the plain formula, with the rounding passed straight through, differentiated by autograd."""
    (layer, *_) = layers_of(adapted_model(untrained, qat_scheme="int4", qat_target="merged"), "gate_proj")
    a, b, weight = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    x = INPUT.clone().requires_grad_()
    merged = weight + layer.scaling["default"] * b @ a
    straight_through = (
        merged + (int4.fake_quantize_merged(weight, a, b, layer.scaling["default"], 64) - merged).detach()
    )
    loss = torch.sin(x @ straight_through.T).sum()
    expected = torch.autograd.grad(loss, [x, a, b])
    found = torch.autograd.grad(torch.sin(layer(x)).sum(), [x, a, b])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_base_with_lora_a_is_a_formula_away(untrained):
    """y = Q(W)x + s·B·Q(A)x, and its gradient with the rounding passed straight through, by autograd."""
    plain, model = adapted_model(untrained), adapted_model(untrained, qat_scheme="int4", qat_target="base+lora_a")
    (layer, *_), (raw, *_) = layers_of(model, "gate_proj"), layers_of(plain, "gate_proj")
    a, b = raw.lora_A["default"].weight, raw.lora_B["default"].weight
    deployed = int4.dequantize(int4.quantize(raw.base_layer.weight, 64))
    rounded_a = a + (int4.dequantize(int4.quantize(a, 64)) - a).detach()
    assert not torch.equal(rounded_a, a)
    x = INPUT.clone().requires_grad_()
    y = x @ deployed.T + layer.scaling["default"] * x @ rounded_a.T @ b.T
    torch.testing.assert_close(layer(x), y)
    expected = torch.autograd.grad(torch.sin(y).sum(), [x, a, b])
    ours = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    for found, gradient in zip(torch.autograd.grad(torch.sin(layer(x)).sum(), ours), expected, strict=True):
        torch.testing.assert_close(found, gradient)
    assert get_peft_model_state_dict(model).keys() == get_peft_model_state_dict(plain).keys()


def test_skipped_linears_train_as_they_are(untrained):
    changes = {"qat_scheme": "int4", "skip": ["up_proj"]}
    model, plain = adapted_model(untrained, **changes), adapted_model(untrained)
    for name, same in {"up_proj": True, "down_proj": False}.items():
        pairs = zip(layers_of(model, name), layers_of(plain, name), strict=True)
        assert all(torch.equal(mine.base_layer.weight, other.base_layer.weight) == same for mine, other in pairs)
    linears = qat.record(model, finetune.Recipe(**RECIPE | changes))["linears"]
    assert len(linears) == 3 * 7
    assert all(in_int4 == ("up_proj" not in name) for name, in_int4 in linears.items())


def test_the_divergence_of_two_tokens_by_hand():
    teacher, student = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    logits = [torch.stack([row, torch.zeros(3), row, row + 5]).unsqueeze(0) for row in (teacher, student)]
    labels = torch.tensor([[-100, 1, -100, 2]])
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(1 / 2)  # of positions 0 and 2
    for tokens, divisor in ((None, 2), (8, 8)):
        found = finetune.kl_divergence(*(finetune.predictions(each, labels) for each in logits), tokens)
        assert found.item() == pytest.approx(2 * by_hand / divisor)


@pytest.mark.parametrize("changes", [{}, *({"qat_scheme": "int4", "qat_target": target} for target in qat.TARGETS)])
def test_distillation_is_from_the_frozen_base(untrained, texts, tmp_path, changes):
    recipe = finetune.Recipe(**RECIPE | changes | {"distillation_weight": 0.9})
    model = adapted_model(untrained, distillation_weight=0.9, **changes)
    for layer in qat.lora_linears(model).values():
        layer.lora_B["default"].weight.data *= 40  # far enough from the base for the divergence to count
    tokenizer = models.load_tokenizer(untrained / "model")
    data = finetune.tokenize(texts, tokenizer, recipe, str(tmp_path)).select(range(4))
    options = type("Options", (), {"device": "cpu", "checkpoints": tmp_path / "checkpoints"})
    trainer = finetune.make_trainer(model, tokenizer, data, recipe, options)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model, dict(batch))
    labels = batch.pop("labels")
    with torch.no_grad():
        teacher = models.load_model(untrained / "model", torch.float32, "cpu")(**batch).logits
        student = model(**batch).logits
    at = labels[:, 1:] != -100
    p, q = (logits[:, :-1][at].softmax(-1) for logits in (teacher, student))
    cross_entropy = -q.log().gather(-1, labels[:, 1:][at].unsqueeze(-1)).mean()
    divergence = (p * (p / q).log()).sum(-1).mean()
    assert divergence > 5e-3
    torch.testing.assert_close(loss, 0.1 * cross_entropy + 0.9 * divergence)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("target", qat.TARGETS)
def test_qat_without_a_layer_is_refused(untrained, target):
    model = models.load_model(untrained / "model", torch.float32, "cpu")
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], exclude_modules=finetune.VISION_MODULES))
    with pytest.raises(InputError, match="no layer could be fake-quantized"):
        qat.fake_quantize_linears(model, target, 64, skip=["language_model"])
    with pytest.raises(InputError, match=r"group_size: 128 does not divide the 64 inputs of .*q_proj"):
        qat.fake_quantize_linears(model, target, 128)


def test_merged_refuses_dropout(untrained):
    with pytest.raises(InputError, match="lora_dropout: expected 0"):
        adapted_model(untrained, qat_scheme="int4", qat_target="merged", lora_dropout=0.1)


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


@pytest.mark.parametrize("target", [pytest.param("base+lora_a", marks=pytest.mark.slow), "merged"])
def test_killed_and_resumed_gives_the_same_bytes(untrained, texts, tmp_path, target):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run_script("finetune", *arguments(untrained, texts, whole, qat_scheme="int4", qat_target=target))
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(whole / "training.csv")
    assert table["step"].tolist() == list(range(1, 13))
    assert not (whole / "checkpoints").exists()
    record = json.loads((whole / "adapter" / "qat.json").read_text())
    assert (record["scheme"], record["target"], record["group_size"]) == ("int4", target, 64)
    assert list(record["linears"].values()) == [True] * 3 * 7

    command = [sys.executable, str(ROOT / "scripts" / "finetune.py")]
    command += map(str, arguments(untrained, texts, killed, qat_scheme="int4", qat_target=target))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((killed / "checkpoints").glob("checkpoint-*/whole")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "adapter").exists()
    (checkpoint, *_) = sorted((killed / "checkpoints").glob("checkpoint-*"))
    (killed / "checkpoints" / "checkpoint-11").mkdir()  # cut off while it was being written

    result = run_script("finetune", *arguments(untrained, texts, killed, qat_scheme="int4", qat_target=target))
    assert result.returncode == 0, result.stderr
    assert int(checkpoint.name.rpartition("-")[2]) < 12
    assert adapter_bytes(killed) == adapter_bytes(whole)
    resumed = pd.read_csv(killed / "training.csv")
    assert resumed["loss"].tolist() == table["loss"].tolist()


@pytest.mark.slow
def test_a_training_that_was_done_takes_no_step_more(untrained, texts, tmp_path):
    """At first the table cannot be written, after the last step; at a constant rate a step more would be seen."""
    changes = {"lr_scheduler_type": "constant"}
    whole, stopped = arguments(untrained, texts, tmp_path / "whole", **changes), tmp_path / "stopped"
    assert run_script("finetune", *whole).returncode == 0
    stopped.mkdir()
    (stopped / "file").touch()
    again = arguments(untrained, texts, stopped, **changes)
    assert run_script("finetune", *again[:-1], stopped / "file" / "training.csv").returncode == 1
    assert (stopped / "checkpoints" / "checkpoint-12").exists()
    result = run_script("finetune", *again)
    assert result.returncode == 0, result.stderr
    assert adapter_bytes(stopped) == adapter_bytes(tmp_path / "whole")
    assert (stopped / "training.csv").read_text().splitlines()[-1].startswith("12,")


def test_a_training_that_diverges_says_so(untrained, texts, tmp_path):
    result = run_script("finetune", *arguments(untrained, texts, tmp_path, learning_rate=1e30, warmup_steps=0))
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: finetune: the loss of step \d+ is nan; lower learning_rate", result.stderr.splitlines()[-1]
    )
    assert not (tmp_path / "adapter").exists()


def test_a_training_within_its_warm_up_is_one(untrained, texts, tmp_path):
    result = run_script("finetune", *arguments(untrained, texts, tmp_path, max_steps=2, warmup_steps=5))
    assert result.returncode == 0, result.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="expected checkpoints of this program, found something else"):
        finetune.prepare_checkpoints(tmp_path, {})
    assert (tmp_path / "thesis").exists()


def test_checkpoints_of_other_settings_are_not_used(tmp_path):
    finetune.prepare_checkpoints(tmp_path, {"learning_rate": 1})
    assert finetune.last_whole(tmp_path) is None
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "whole").touch()
    finetune.prepare_checkpoints(tmp_path, {"learning_rate": 1})
    assert finetune.last_whole(tmp_path).name == "checkpoint-8"
    finetune.prepare_checkpoints(tmp_path, {"learning_rate": 2})
    assert finetune.last_whole(tmp_path) is None
