"""Merged and quantized folders are what transformers loads, and hold no pickle."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torchao.quantization import Int4Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from conftest import SKIP, run_script
from int4_qat import int4, models


def quantize(checkpoint, group_size, output):
    options = ["--checkpoint", checkpoint, "--scheme", "int4", "--packing", "plain", "--group-size", group_size]
    return run_script("quantize", *options, "--skip", *SKIP, "--output", output)


@pytest.fixture(scope="module")
def merged(untrained, tmp_path_factory):
    """A bf16 checkpoint with a random adapter merged in, and the weights that it must hold."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(1)
    model = models.load_model(untrained / "model", torch.float32, "cpu")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    expected = dict(base)
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_B"):
            a, b = module.lora_A["default"].weight.data, module.lora_B["default"].weight.data
            b.normal_()
            key = name.removeprefix("base_model.model.") + ".weight"
            expected[key] = base[key] + 2.0 * b @ a
    adapted.save_pretrained(folder / "adapter")
    paths = ["--model", untrained / "model", "--adapter", folder / "adapter", "--output", folder / "bf16"]
    result = run_script("merge", *paths)
    assert result.returncode == 0, result.stderr
    return folder / "bf16", expected


@pytest.fixture(scope="module")
def quantized(merged):
    folder = merged[0].with_name("int4")
    result = quantize(merged[0], 64, folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_merge_is_w_plus_s_b_a(merged):
    folder, expected = merged
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), expected[name], rtol=2**-8, atol=1e-6), name


def test_merge_keeps_tokenizer_processor_and_template(merged, untrained):
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja", "generation_config.json"):
        assert (merged[0] / name).exists(), name
    assert AutoProcessor.from_pretrained(merged[0]).tokenizer.chat_template
    before, after = (json.loads((folder / "tokenizer.json").read_text()) for folder in (untrained / "model", merged[0]))
    assert before == after


def test_transformers_reads_the_very_codes(merged, quantized):
    source = AutoModelForImageTextToText.from_pretrained(merged[0]).state_dict()
    model = AutoModelForImageTextToText.from_pretrained(quantized, dtype=torch.bfloat16)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Int4Tensor)}
    assert len(tensors) == 3 * 7
    for name, tensor in tensors.items():
        expected = int4.quantize(source[name], 64)
        assert torch.equal(tensor.qdata, int4.pack(expected.codes)), name
        assert torch.equal(tensor.scale, expected.scale)
        assert torch.equal(tensor.zero_point, expected.zero_point)


def test_the_cpu_loader_uses_the_same_arithmetic(merged, quantized):
    source = models.load_model(merged[0], torch.float32, "cpu").state_dict()
    loaded = models.load_model(quantized, torch.float32, "cpu")
    for name, tensor in loaded.state_dict().items():
        is_quantized = "language_model" in name and "_proj" in name
        weight = source[name]
        expected = int4.dequantize(int4.quantize(weight, 64)) if is_quantized else weight
        assert torch.equal(tensor, expected), name
    assert loaded(input_ids=torch.tensor([[2, 5, 6]])).logits.isfinite().all()


def test_files_hold_no_pickle_and_half_a_byte_a_weight(quantized):
    names = {path.suffix for path in quantized.iterdir()}
    assert names <= {".safetensors", ".json", ".jinja"}
    manifest = json.loads((quantized / "manifest.json").read_text())
    done = [layer for layer in manifest["layers"] if layer["quantized"]]
    weights = sum(layer["shape"][0] * layer["shape"][1] for layer in done)
    with safe_open(quantized / "model.safetensors", "pt") as tensors:
        stored = [key for key in tensors.keys() if "._weight_" in key]  # noqa: SIM118
        bytes_on_disk = sum(tensors.get_tensor(key).nbytes for key in stored)
    assert bytes_on_disk / weights <= 0.57
    assert bytes_on_disk == sum(layer["bytes_after"] for layer in done)
    left = [layer for layer in manifest["layers"] if not layer["quantized"]]
    assert left
    assert all("quantization.skip names" in layer["reason"] for layer in left)
    assert json.loads((quantized / "config.json").read_text())["quantization_config"]["quant_method"] == "torchao"


def test_a_layer_that_does_not_fit_is_named_in_the_manifest(merged, tmp_path):
    result = quantize(merged[0], 128, tmp_path / "int4")
    assert result.returncode == 0, result.stderr
    layers = json.loads((tmp_path / "int4" / "manifest.json").read_text())["layers"]
    reasons = {layer["name"].rpartition(".")[2]: layer["reason"] for layer in layers if "language" in layer["name"]}
    assert reasons["q_proj"] == "group size 128 does not divide 64 inputs"
    assert reasons["down_proj"] == "linear, 128 inputs in groups of 128"


def test_nothing_to_quantize_is_an_error(merged, tmp_path):
    result = quantize(merged[0], 256, tmp_path / "int4")
    assert result.returncode == 1
    assert "no layer can be quantized" in result.stderr
    assert list(tmp_path.iterdir()) == []
