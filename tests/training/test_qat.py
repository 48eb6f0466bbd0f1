"""Test the outputs and gradients of fake-quantized layers."""

from typing import get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torchao.quantization import quantize_
from torchao.quantization.qat import FakeQuantizedLinear, QATConfig
from torchao.quantization.qat.fake_quantize_config import Int4WeightFakeQuantizeConfig

from int4_qat.checkpoint import loading
from int4_qat.config.recipe import Recipe, Target
from int4_qat.engines import inference
from int4_qat.quantization import int4, schemes
from int4_qat.system.errors import InputError
from int4_qat.training import merged_weight, qat
from int4_qat.training.backends import transformers
from programs import INT4, RECIPE, SCHEMES, quantize_options, run_in_turn, seen

TARGETS = get_args(Target)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def adapted_model(untrained, **changes):
    """Return a model as it trains, with adapters that are not zero."""
    model = transformers.add_adapters(untrained / "model", Recipe(**RECIPE | changes), "cpu")
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def layers_of(model, name):
    return [module for path, module in model.named_modules() if path.endswith(name)]


INPUT = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


def test_base_sees_the_frozen_weight_as_torchaos_fake_quantizer_does(untrained):
    plain, model = adapted_model(untrained), adapted_model(untrained, **seen())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name and "language_model" in name for name in trainable)
    config = Int4WeightFakeQuantizeConfig(group_size=64, activation_dtype=torch.bfloat16)
    for ours, theirs in zip(layers_of(model, "gate_proj"), layers_of(plain, "gate_proj"), strict=True):
        quantize_(theirs, QATConfig(weight_config=config, step="prepare"), lambda m, n: n == "base_layer")
        assert isinstance(theirs.base_layer, FakeQuantizedLinear)
        # torchao keeps the scale and the zero point in fp32; a checkpoint stores them in bfloat16
        torch.testing.assert_close(ours(INPUT), theirs(INPUT), rtol=0.02, atol=0.02)
        deployed = int4.dequantize(int4.quantize(theirs.base_layer.weight, INT4))
        assert torch.equal(ours.base_layer.weight, deployed)


@each_scheme
def test_merged_computes_with_what_is_deployed(untrained, tmp_path, monkeypatch, scheme):
    model = adapted_model(untrained, **seen(scheme), qat_target="merged")
    model.save_pretrained(tmp_path / "adapter")
    paths = ["--model", untrained / "model", "--adapter", tmp_path / "adapter", "--output", tmp_path / "bf16"]
    exported = ["--checkpoint", tmp_path / "bf16", "--output", tmp_path / "int4", *quantize_options(scheme)]
    run_in_turn(monkeypatch, ("merge", *paths), ("quantize", *exported))
    deployed = inference.load_model(tmp_path / "int4", torch.float32, "cpu")
    tokens = torch.randint(10, 200, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, deployed(input_ids=tokens).logits)
        base = adapted_model(untrained, **seen(scheme))
        assert not torch.allclose(base(input_ids=tokens).logits, deployed(input_ids=tokens).logits, rtol=1e-3)


@each_scheme
def test_the_gradient_of_merged_is_autograds(untrained, scheme):
    """It equals autograd's gradient of the plain formula, with the rounding passed straight through."""
    (layer, *_) = layers_of(adapted_model(untrained, **seen(scheme), qat_target="merged"), "gate_proj")
    a, b, weight = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    x = INPUT.clone().requires_grad_()
    merged = weight + layer.scaling["default"] * b @ a
    deployed = merged_weight.fake_quantize_merged(weight, a, b, layer.scaling["default"], scheme)
    straight_through = merged + (deployed - merged).detach()
    loss = torch.sin(x @ straight_through.T).sum()
    expected = torch.autograd.grad(loss, [x, a, b])
    found = torch.autograd.grad(torch.sin(layer(x)).sum(), [x, a, b])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_merged_trains_under_autocast_behind_a_layer_norm(untrained):
    """This is the situation on a GPU, where autocast keeps a LayerNorm's result in fp32 and multiplies in bf16."""
    (layer, *_) = layers_of(adapted_model(untrained, **seen(), qat_target="merged"), "gate_proj")
    matrices = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    x = torch.nn.functional.layer_norm(INPUT, INPUT.shape[-1:]).requires_grad_()
    expected = torch.autograd.grad(torch.sin(layer(x)).sum(), [x, *matrices])
    layer.base_layer.weight.data = layer.base_layer.weight.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.sin(layer(x)).sum()
    for found, gradient in zip(torch.autograd.grad(loss, [x, *matrices]), expected, strict=True):
        assert found.dtype == gradient.dtype
        torch.testing.assert_close(found, gradient, rtol=0.05, atol=0.05 * gradient.abs().max().item())


@each_scheme
def test_base_with_lora_a_is_a_formula_away(untrained, scheme):
    """The layer computes y = Q(W)x + s·B·Q(A)x.

    Its gradient is autograd's, with the rounding passed straight through.
    """
    plain, model = adapted_model(untrained), adapted_model(untrained, **seen(scheme), qat_target="base+lora_a")
    (layer, *_), (raw, *_) = layers_of(model, "gate_proj"), layers_of(plain, "gate_proj")
    a, b = raw.lora_A["default"].weight, raw.lora_B["default"].weight
    deployed = int4.dequantize(int4.quantize(raw.base_layer.weight, scheme))
    rounded_a = a + (int4.dequantize(int4.quantize(a, scheme)) - a).detach()
    assert not torch.equal(rounded_a, a)
    x = INPUT.clone().requires_grad_()
    y = x @ deployed.T + layer.scaling["default"] * x @ rounded_a.T @ b.T
    torch.testing.assert_close(layer(x), y)
    expected = torch.autograd.grad(torch.sin(y).sum(), [x, a, b])
    ours = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    for found, gradient in zip(torch.autograd.grad(torch.sin(layer(x)).sum(), ours), expected, strict=True):
        torch.testing.assert_close(found, gradient)
    assert get_peft_model_state_dict(model).keys() == get_peft_model_state_dict(plain).keys()


def test_ignored_linears_train_as_they_are(untrained):
    changes = seen(ignore=["up_proj"])
    model, plain = adapted_model(untrained, **changes), adapted_model(untrained)
    for name, same in {"up_proj": True, "down_proj": False}.items():
        pairs = zip(layers_of(model, name), layers_of(plain, name), strict=True)
        assert all(torch.equal(mine.base_layer.weight, other.base_layer.weight) == same for mine, other in pairs)
    linears = qat.record(model, Recipe(**RECIPE | changes))["linears"]
    assert len(linears) == 3 * 7
    assert all(in_int4 == ("up_proj" not in name) for name, in_int4 in linears.items())


@pytest.mark.parametrize("target", TARGETS)
def test_qat_without_a_layer_is_refused(untrained, target):
    model = loading.load(untrained / "model", torch.float32, "cpu")
    pattern = transformers.unreached_pattern(untrained / "model")
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], exclude_modules=pattern))
    with pytest.raises(InputError, match="expected linears with a LoRA adapter"):
        qat.fake_quantize_linears(model, target, INT4, ignore=["language_model"])
    with pytest.raises(InputError, match=r"group_size: expected a divisor of the 64 inputs of .*q_proj, found 128"):
        qat.fake_quantize_linears(model, target, schemes.int4(128))


def test_merged_refuses_dropout(untrained):
    with pytest.raises(InputError, match="lora_dropout: expected 0"):
        adapted_model(untrained, **seen(), qat_target="merged", lora_dropout=0.1)
