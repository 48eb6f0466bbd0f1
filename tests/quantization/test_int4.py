"""Compare int4.py with torchao and with numbers by hand; test_schemes.py tests the two grids that torchao lacks."""

import pytest
import torch
from torchao.quantization.qat.fake_quantize_config import Int4WeightFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import Int4WeightFakeQuantizer

from int4_qat.quantization import int4, plain_weight, schemes, torchao_tensor
from weights import normal


def test_one_group_by_hand():
    # -7 ... 8 in steps of one: scale 1, so every value is a code; zero point = min + 8.
    values = torch.arange(-7.0, 9.0).view(1, 16)
    quantized = int4.quantize(values, schemes.int4(16))
    assert quantized.codes.tolist() == [list(range(-8, 8))]
    assert quantized.scale.item() == 1.0
    assert quantized.zero_point.item() == 1.0
    assert torch.equal(int4.dequantize(quantized), values)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_torchaos(group_size, dtype):
    w = normal(48, 256).to(dtype)
    config = Int4WeightFakeQuantizeConfig(group_size=group_size, activation_dtype=torch.bfloat16)
    theirs = Int4WeightFakeQuantizer(config)(w.float())
    groups = w.float().view(48, -1, group_size)
    scale = (groups.amax(-1) - groups.amin(-1)) / 15
    zero_point = groups.amin(-1) + scale * 8
    ours = int4.quantize(w, schemes.int4(group_size))
    unrounded = ours.codes.float().view_as(groups) * scale.unsqueeze(-1) + zero_point.unsqueeze(-1)
    assert torch.equal(unrounded.view(48, 256), theirs)
    assert torch.equal(ours.scale, scale.T.to(torch.bfloat16))
    assert torch.equal(ours.zero_point, zero_point.T.to(torch.bfloat16))


def test_constant_groups_survive():
    constant = torch.full((2, 64), 0.5)
    assert torch.allclose(int4.fake_quantize(constant, schemes.int4(64)), constant, atol=2e-3)
    zeros = torch.zeros(2, 64)
    assert torch.equal(int4.fake_quantize(zeros, schemes.int4(64)).round(decimals=5), zeros)


def test_pack_puts_even_columns_into_the_low_nibble():
    codes = torch.tensor([[1, -2, 7, -8]], dtype=torch.int8)
    assert plain_weight.pack(codes).view(torch.uint8).tolist() == [[0xE1, 0x87]]
    every_code = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 4)
    assert torch.equal(plain_weight.unpack(plain_weight.pack(every_code)), every_code)


def test_bytes_of_a_weight_at_group_128():
    weight = normal(48, 256)
    quantized = int4.quantize(weight, schemes.int4(128))
    assert int4.stored_bytes(quantized) / weight.numel() <= 0.57
    tensor = torchao_tensor.of_weight(quantized)
    assert tensor.qdata.nbytes + tensor.scale.nbytes + tensor.zero_point.nbytes == int4.stored_bytes(quantized)


def test_a_group_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="expected a divisor of 256 input features, found 96"):
        int4.quantize(normal(48, 256), schemes.int4(96))
