"""Test int4 weights in the tiles of PyTorch's kernel, and the linear on them; test_gpu.py runs the real kernel."""

import itertools

import pytest
import torch
from torchao.quantization.quant_primitives import (
    MappingType,
    _choose_qparams_affine_tinygemm,
    _quantize_affine_tinygemm,
)
from torchao.quantization.utils import pack_tinygemm_scales_and_zeros

from int4_qat.engines import inference
from int4_qat.kernels import tiles
from int4_qat.quantization import int4, schemes
from programs import INT4, SCHEMES
from weights import normal

each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@each_scheme
def test_tinygemm_computes_with_the_same_weight(scheme):
    """PyTorch's CPU kernel takes the scales, zero points and codes of its GPU kernel, in another order."""
    quantized = int4.quantize(normal(45, 320), scheme)
    pairs, scale_and_zero = tiles.pack_for_tinygemm(quantized)
    assert (pairs.shape, scale_and_zero.shape) == ((48, 192), (6, 48, 2))
    codes = torch.stack([pairs >> 4, pairs & 0xF], dim=-1).flatten(1).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    x = normal(5, 320, seed=1).to(torch.bfloat16)
    padded = torch.nn.functional.pad(x, (0, 384 - 320))
    found = torch.ops.aten._weight_int4pack_mm_for_cpu(padded, packed, 64, scale_and_zero)[:, :45]
    torch.testing.assert_close(found.float(), x.float() @ int4.dequantize(quantized).T, rtol=0.02, atol=0.1)


def tiles_of(pairs, inner_tiles):
    """Return the tiles of `aten._convert_weight_to_int4pack`, which only GPUs have, by a loop after int4mm.cu."""
    codes = torch.stack([pairs >> 4, pairs & 0xF], dim=-1).flatten(1).tolist()
    shape = (len(codes) // 8, len(codes[0]) // (16 * inner_tiles), 32, inner_tiles // 2)
    packed = torch.empty(shape, dtype=torch.int64)
    for row_tile, column_tile, lane, pair in itertools.product(*map(range, shape)):
        first = 16 * (inner_tiles * column_tile + 2 * pair) + 2 * (lane % 4)
        columns = [first + more for more in (0, 1, 8, 9, 16, 17, 24, 25)]
        v = [codes[8 * row_tile + lane // 4][column] for column in columns]
        nibbles = [v[i] for i in (7, 5, 3, 1, 6, 4, 2, 0)]
        packed[row_tile, column_tile, lane, pair] = int("".join(f"{nibble:x}" for nibble in nibbles), 16)
    return packed.to(torch.uint32).view(torch.int32)


@each_scheme
def test_tiles_are_unpacked(scheme):
    quantized = int4.quantize(normal(45, 320), scheme)
    pairs, scale_and_zero = tiles.pack_for_tinygemm(quantized)
    packed = tiles_of(pairs, 8)
    assert torch.equal(tiles.unpack_tiles(packed)[:45, :320], quantized.codes)
    for dtype in (torch.float32, torch.bfloat16):
        expected = int4.dequantize(quantized).to(dtype)
        assert torch.equal(tiles.dequantize_tiles(packed, scale_and_zero, dtype)[:45, :320], expected)


def of_torchaos_tiles(w, group_size):
    """Return the codes 0 ... 15, scales and zero points of torchao's tile_packed_to_4d for a weight, before packing."""
    block, levels = (1, group_size), {"quant_min": 0, "quant_max": 15}
    kinds = {"mapping_type": MappingType.ASYMMETRIC, "scale_dtype": w.dtype, "zero_point_dtype": w.dtype}
    of_groups = _choose_qparams_affine_tinygemm(w, block_size=block, target_dtype=torch.int32, **kinds, **levels)
    codes = _quantize_affine_tinygemm(w, block, *of_groups, torch.int32, **levels)
    return codes, *(part.view(len(w), -1).to(torch.bfloat16) for part in of_groups)


def test_tiles_hold_what_torchaos_do_in_fp32():
    w = normal(48, 512)
    codes, scale, zero_point = of_torchaos_tiles(w, 128)
    pairs, scale_and_zero = tiles.pack_for_tinygemm(int4.quantize(w, schemes.int4(128)))
    assert torch.equal(pairs, (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8))
    assert torch.equal(scale_and_zero, pack_tinygemm_scales_and_zeros(scale, zero_point, torch.bfloat16))


def test_in_bfloat16_torchaos_tiles_are_not_torchaos_plain_format():
    """Our tiles follow the plain format: their codes equal the codes of the same weight in fp32."""
    w, scheme = normal(48, 512).to(torch.bfloat16), schemes.int4(128)
    theirs, ours = of_torchaos_tiles(w, 128)[0] - 8, int4.quantize(w, scheme).codes
    assert 0.01 < (theirs != ours).float().mean() < 0.04
    assert torch.equal(ours, int4.quantize(w.float(), scheme).codes)


@pytest.fixture
def played_kernel():
    """Put PyTorch's CPU kernel in place of its tinygemm; tests/kernels/test_gpu.py uses the real one."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_convert_weight_to_int4pack", tiles_of, "CPU")

    def multiply(x, packed, group_size, scale_and_zero):
        codes = (tiles.unpack_tiles(packed) + 8).to(torch.int32)
        for_cpu = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, for_cpu, group_size, scale_and_zero)

    library.impl("_weight_int4pack_mm", multiply, "CPU")
    yield
    library._destroy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("played_kernel")
def test_a_tile_packed_linear_computes_with_the_exported_weight(dtype, bias):
    linear = torch.nn.Linear(320, 45, bias=bias, dtype=dtype)
    quantized = int4.quantize(linear.weight.detach(), INT4)
    weight, packed = int4.dequantize(quantized).to(dtype), tiles.TilePackedLinear(linear, quantized)
    assert inference.weight_bytes(packed) == 48 * 384 // 2 + 6 * 48 * 4 + 45 * dtype.itemsize * bias
    few, many = ((5,), (2, 3), (packed.FEW_TOKENS,)), ((0,), (packed.FEW_TOKENS + 1,), (3, packed.FEW_TOKENS))
    for shape in (*few, *many):
        x = torch.randn(*shape, 320, dtype=dtype)
        found, expected = packed(x), torch.nn.functional.linear(x, weight, linear.bias)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
        assert torch.equal(found, expected) or (dtype == torch.bfloat16 and shape in few)
