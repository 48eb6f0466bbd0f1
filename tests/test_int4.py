"""int4.py against torchao's own numbers and hand-computed ones."""

import gc
import itertools
import shutil
import weakref

import pytest
import torch
from torchao.quantization.qat.fake_quantize_config import Int4WeightFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import Int4WeightFakeQuantizer
from torchao.quantization.quant_primitives import (
    MappingType,
    _choose_qparams_affine_tinygemm,
    _quantize_affine_tinygemm,
)
from torchao.quantization.utils import pack_tinygemm_scales_and_zeros

from int4_qat import int4, models
from int4_qat.errors import InputError


def weight(rows=48, columns=256, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_one_group_by_hand():
    # -7 ... 8 in steps of one: scale 1, so every value is a code; zero point = min + 8.
    values = torch.arange(-7.0, 9.0).view(1, 16)
    quantized = int4.quantize(values, 16)
    assert quantized.codes.tolist() == [list(range(-8, 8))]
    assert quantized.scale.item() == 1.0
    assert quantized.zero_point.item() == 1.0
    assert torch.equal(int4.dequantize(quantized), values)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_torchaos(group_size, dtype):
    w = weight().to(dtype)
    config = Int4WeightFakeQuantizeConfig(group_size=group_size, activation_dtype=torch.bfloat16)
    theirs = Int4WeightFakeQuantizer(config)(w.float())
    groups = w.float().view(48, -1, group_size)
    scale = (groups.amax(-1) - groups.amin(-1)) / 15
    zero_point = groups.amin(-1) + scale * 8
    ours = int4.quantize(w, group_size)
    unrounded = ours.codes.float().view_as(groups) * scale.unsqueeze(-1) + zero_point.unsqueeze(-1)
    assert torch.equal(unrounded.view(48, 256), theirs)
    assert torch.equal(ours.scale, scale.T.to(torch.bfloat16))
    assert torch.equal(ours.zero_point, zero_point.T.to(torch.bfloat16))


def test_blocks_of_rows_are_the_whole(monkeypatch):
    w, a, b = weight(100, 256), weight(8, 256, seed=1), weight(100, 8, seed=2)
    whole = int4.dequantize(int4.quantize((w + 0.5 * b @ a).to(torch.bfloat16), 64))
    monkeypatch.setattr(int4, "CACHED_WEIGHTS", 256 * 7)
    assert torch.equal(int4.fake_quantize_merged(w, a, b, 0.5, 64), whole)


def test_autocast_changes_nothing():
    w, a, b = weight(100, 256).to(torch.bfloat16), weight(8, 256, seed=1), weight(100, 8, seed=2)
    expected = int4.fake_quantize_merged(w, a, b, 0.02, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(int4.fake_quantize_merged(w, a, b, 0.02, 64), expected)


def test_constant_groups_survive():
    constant = torch.full((2, 64), 0.5)
    assert torch.allclose(int4.fake_quantize(constant, 64), constant, atol=2e-3)
    assert torch.equal(int4.fake_quantize(torch.zeros(2, 64), 64).round(decimals=5), torch.zeros(2, 64))


def test_pack_puts_even_columns_into_the_low_nibble():
    codes = torch.tensor([[1, -2, 7, -8]], dtype=torch.int8)
    assert int4.pack(codes).view(torch.uint8).tolist() == [[0xE1, 0x87]]
    every_code = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 4)
    assert torch.equal(int4.unpack(int4.pack(every_code)), every_code)


def test_tinygemm_computes_with_the_same_weight():
    """PyTorch's kernel for CPUs takes the scales, zero points and codes of its kernel for GPUs, but for their order."""
    quantized = int4.quantize(weight(45, 320), 64)
    pairs, scale_and_zero = int4.pack_for_tinygemm(quantized)
    assert (pairs.shape, scale_and_zero.shape) == ((48, 192), (6, 48, 2))
    codes = torch.stack([pairs >> 4, pairs & 0xF], dim=-1).flatten(1).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    x = torch.randn(5, 320, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    padded = torch.nn.functional.pad(x, (0, 384 - 320))
    found = torch.ops.aten._weight_int4pack_mm_for_cpu(padded, packed, 64, scale_and_zero)[:, :45]
    torch.testing.assert_close(found.float(), x.float() @ int4.dequantize(quantized).T, rtol=0.02, atol=0.1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile links nothing on a CPU from a path with a space in it")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_compiled_kernels_round_as_the_export_does(dtype):
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(8, 256, generator=generator), torch.randn(48, 8, generator=generator)
    merged = int4.merge(weight().to(dtype), a, b, 0.5)
    expected = int4.dequantize(int4.quantize(merged, 128)).to(dtype)
    found = int4._compiled(int4.fake_quantize)(int4._compiled(int4.merge)(weight().to(dtype), a, b, 0.5), 128, dtype)
    assert torch.equal(found, expected)


def test_bytes_of_a_weight_at_group_128():
    quantized = int4.quantize(weight(), 128)
    assert int4.stored_bytes(quantized) / weight().numel() <= 0.57
    tensor = models.to_torchao(quantized, 128)
    assert tensor.qdata.nbytes + tensor.scale.nbytes + tensor.zero_point.nbytes == int4.stored_bytes(quantized)


def test_a_group_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="group size 96 does not divide 256"):
        int4.quantize(weight(), 96)


def tiles_of(pairs, inner_tiles):
    """A loop in place of `aten._convert_weight_to_int4pack`, which only a GPU has, after PyTorch's int4mm.cu."""
    codes = torch.stack([pairs >> 4, pairs & 0xF], dim=-1).flatten(1).tolist()
    shape = (len(codes) // 8, len(codes[0]) // (16 * inner_tiles), 32, inner_tiles // 2)
    tiles = torch.empty(shape, dtype=torch.int64)
    for row_tile, column_tile, lane, pair in itertools.product(*map(range, shape)):
        first = 16 * (inner_tiles * column_tile + 2 * pair) + 2 * (lane % 4)
        columns = [first + more for more in (0, 1, 8, 9, 16, 17, 24, 25)]
        v = [codes[8 * row_tile + lane // 4][column] for column in columns]
        nibbles = [v[i] for i in (7, 5, 3, 1, 6, 4, 2, 0)]
        tiles[row_tile, column_tile, lane, pair] = int("".join(f"{nibble:x}" for nibble in nibbles), 16)
    return tiles.to(torch.uint32).view(torch.int32)


def test_tiles_are_unpacked():
    quantized = int4.quantize(weight(45, 320), 64)
    pairs, scale_and_zero = int4.pack_for_tinygemm(quantized)
    tiles = tiles_of(pairs, 8)
    assert torch.equal(int4.unpack_tiles(tiles)[:45, :320], quantized.codes)
    for dtype in (torch.float32, torch.bfloat16):
        expected = int4.dequantize(quantized).to(dtype)
        assert torch.equal(int4.dequantize_tiles(tiles, scale_and_zero, dtype)[:45, :320], expected)


def of_torchaos_tiles(w, group_size):
    """What torchao's tile_packed_to_4d makes of a weight before it packs: codes 0 ... 15, scales and zero points."""
    block, levels = (1, group_size), {"quant_min": 0, "quant_max": 15}
    kinds = {"mapping_type": MappingType.ASYMMETRIC, "scale_dtype": w.dtype, "zero_point_dtype": w.dtype}
    of_groups = _choose_qparams_affine_tinygemm(w, block_size=block, target_dtype=torch.int32, **kinds, **levels)
    codes = _quantize_affine_tinygemm(w, block, *of_groups, torch.int32, **levels)
    return codes, *(part.view(len(w), -1).to(torch.bfloat16) for part in of_groups)


def test_tiles_hold_what_torchaos_do_in_fp32():
    w = weight(48, 512)
    codes, scale, zero_point = of_torchaos_tiles(w, 128)
    pairs, scale_and_zero = int4.pack_for_tinygemm(int4.quantize(w, 128))
    assert torch.equal(pairs, (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8))
    assert torch.equal(scale_and_zero, pack_tinygemm_scales_and_zeros(scale, zero_point, torch.bfloat16))


def test_in_bfloat16_torchaos_tiles_are_not_torchaos_plain_format():
    """So there is one to follow: the plain one, whose codes are those of the same weight in fp32."""
    w = weight(48, 512).to(torch.bfloat16)
    theirs, ours = of_torchaos_tiles(w, 128)[0] - 8, int4.quantize(w, 128).codes
    assert 0.01 < (theirs != ours).float().mean() < 0.04
    assert torch.equal(ours, int4.quantize(w.float(), 128).codes)


@pytest.fixture
def played_kernel():
    """PyTorch's kernel for CPUs in place of its tinygemm; tests/test_gpu.py has the real one."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_convert_weight_to_int4pack", tiles_of, "CPU")

    def multiply(x, tiles, group_size, scale_and_zero):
        codes = (int4.unpack_tiles(tiles) + 8).to(torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group_size, scale_and_zero)

    library.impl("_weight_int4pack_mm", multiply, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("played_kernel")
def test_a_tile_packed_linear_computes_with_the_exported_weight(dtype, bias):
    linear = torch.nn.Linear(320, 45, bias=bias, dtype=dtype)
    quantized = int4.quantize(linear.weight.detach(), 64)
    exported = int4.dequantize(quantized).to(dtype)
    linear.weight = torch.nn.Parameter(models.to_torchao(quantized, 64), requires_grad=False)
    model = torch.nn.ModuleDict({"deep": torch.nn.Sequential(linear, torch.nn.Linear(45, 8))})
    models.tile_pack_weights(model)
    packed = model["deep"][0]
    assert [type(module) for module in model["deep"]] == [models.TilePackedLinear, torch.nn.Linear]
    assert models.weight_bytes(packed) == 48 * 384 // 2 + 6 * 48 * 4 + 45 * dtype.itemsize * bias
    few, many = ((5,), (2, 3), (packed.FEW_TOKENS,)), ((0,), (packed.FEW_TOKENS + 1,), (3, packed.FEW_TOKENS))
    for shape in (*few, *many):
        x = torch.randn(*shape, 320, dtype=dtype)
        found, expected = packed(x), torch.nn.functional.linear(x, exported, linear.bias)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
        assert torch.equal(found, expected) or (dtype == torch.bfloat16 and shape in few)


@pytest.mark.usefixtures("played_kernel")
def test_packing_lets_the_old_weight_go():
    """At once: on a GPU both would count. transformers gives each linear a method bound to it, a cycle."""
    linear = torch.nn.Linear(256, 64, bias=False)
    linear.weight = torch.nn.Parameter(models.to_torchao(int4.quantize(weight(64), 64), 64), requires_grad=False)
    linear.extra_repr = linear.extra_repr
    codes = weakref.ref(linear.weight.qdata)
    model = torch.nn.Sequential(linear)
    del linear
    gc.disable()
    try:
        models.tile_pack_weights(model)
        assert codes() is None
    finally:
        gc.enable()


def test_a_module_that_is_more_than_a_linear_is_an_error():
    more = torch.nn.modules.linear.NonDynamicallyQuantizableLinear(256, 64)
    more.weight = torch.nn.Parameter(models.to_torchao(int4.quantize(weight(64), 32), 32), requires_grad=False)
    with pytest.raises(InputError, match=r"deep\.0: expected a Linear .* NonDynamicallyQuantizableLinear"):
        models.tile_pack_weights(torch.nn.ModuleDict({"deep": torch.nn.Sequential(more)}))
