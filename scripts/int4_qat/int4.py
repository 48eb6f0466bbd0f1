"""The one definition of int4: group-wise asymmetric, as torchao's Int4WeightOnlyConfig.

Every group of `group_size` consecutive input features of a weight row has a scale and a zero point,

    scale      = (max - min) / 15                   (fp32; at least 1e-6 / 15)
    code       = round((weight - min) / scale) - 8  (-8 ... 7, from the unrounded scale)
    zero_point = min + 8 * scale
    weight    ~= code * scale + zero_point

which is the arithmetic of torchao's `Int4WeightFakeQuantizer` and of `int4_row_quantize_zp` in MSLK, the
kernels' quantizer, on a CPU; on a GPU they multiply by 1/15, and here the result is the CPU's. A checkpoint
stores scale and zero point in bfloat16; torchao's fake quantizer forgets that rounding. `fake_quantize` here
includes it, so that training sees the weight that is deployed.

torchao's tile_packed_to_4d quantizes by itself, in the weight's dtype: from fp32 to the same bits, from bfloat16 one
code in forty comes out otherwise. The tiles here hold the plain format's codes, so that a GPU computes with what was
exported.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch

BITS = 4
GROUP_SIZES = (32, 64, 128, 256)
LEVELS = 2**BITS - 1
OFFSET = 2 ** (BITS - 1)
SMALLEST_RANGE = 1e-6
STORAGE_DTYPE = torch.bfloat16
# PyTorch's tinygemm kernel reads 8 rows and 16 columns in one tile, and of each row the most at once if 8 tiles stand
# side by side.
TILE_ROWS, TILE_COLUMNS, INNER_TILES = 8, 16, 8
# Left alone, the compiler leaves out the rounding to bfloat16 between its steps, and divides less exactly on a GPU.
EXACT = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}
CACHED_WEIGHTS = 2**18  # as fp32 about a core's cache; in smaller blocks many threads wait for Python's lock


class Int4Weight(NamedTuple):
    """A quantized (rows, columns) weight, in the layout of torchao's plain Int4Tensor."""

    codes: torch.Tensor  # int8 (rows, columns), values -8 ... 7
    scale: torch.Tensor  # bfloat16 (columns / group_size, rows)
    zero_point: torch.Tensor  # bfloat16 (columns / group_size, rows)


def quantize(weight: torch.Tensor, group_size: int) -> Int4Weight:
    """Quantize a (rows, columns) weight of any float dtype; ValueError if group_size does not divide columns."""
    rows, columns = weight.shape
    if columns % group_size:
        raise ValueError(f"group size {group_size} does not divide {columns} input features")
    groups = weight.detach().float().view(rows, columns // group_size, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    # Through fp64 it is the correctly rounded quotient on every device.
    scale = ((high - low).clamp(min=SMALLEST_RANGE).double() / LEVELS).float()
    codes = (groups - low).div_(scale).round_().clamp_(0, LEVELS).sub_(OFFSET)
    zero_point = low + scale * OFFSET
    return Int4Weight(codes.view(rows, columns).to(torch.int8), _store(scale), _store(zero_point))


def empty(weight: torch.Tensor, group_size: int) -> Int4Weight:
    """What `quantize` returns, without values: on the meta device, for its shapes."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.int8, device="meta")
    of_groups = torch.empty(columns // group_size, rows, dtype=STORAGE_DTYPE, device="meta")
    return Int4Weight(codes, of_groups, of_groups)


def dequantize(quantized: Int4Weight) -> torch.Tensor:
    """The fp32 (rows, columns) weight that the codes stand for, with scale and zero point as stored."""
    codes, scale, zero_point = quantized
    rows, columns = codes.shape
    groups = codes.float().view(rows, scale.shape[0], -1)
    return (groups * _per_group(scale) + _per_group(zero_point)).view(rows, columns)


def fake_quantize(weight: torch.Tensor, group_size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What a weight becomes by export and load, in its own dtype or the one given."""
    return dequantize(quantize(weight, group_size)).to(dtype or weight.dtype)


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """W + s·BA as a checkpoint stores it: added up in fp32, rounded to bfloat16 once.

    weight (rows, columns), a (r, columns), b (rows, r). Not one addmm, which rounds differently from device to device;
    at r = 8 a CPU and an H100 agree in every bit.
    """
    return (b.float() @ a.float()).mul_(scaling).add_(weight).to(STORAGE_DTYPE)


def fake_quantize_merged(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, group_size: int
) -> torch.Tensor:
    """The deployed weight Q(W + s·BA), in the weight's dtype; on a CPU in blocks of rows that fit its cache.

    Training's autocast, which would round A and B to bfloat16 before they are multiplied, is off in it: the export
    knows none.
    """
    with torch.autocast(weight.device.type, enabled=False):
        if weight.is_cuda:
            merged = _compiled(merge)(weight, a, b, scaling)
            return _compiled(fake_quantize)(merged, group_size, weight.dtype)
        deployed = torch.empty_like(weight)
        for block in row_blocks(*weight.shape):
            deployed[block] = fake_quantize(merge(weight[block], a, b[block], scaling), group_size, weight.dtype)
        return deployed


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Rows of a weight in blocks that fit a core's cache; group by group they are what the whole weight gives."""
    step = max(1, CACHED_WEIGHTS // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def pack(codes: torch.Tensor) -> torch.Tensor:
    """int8 (rows, columns) codes as uint4 pairs in int8 (rows, columns / 2): even columns in the low nibble."""
    pairs = codes.contiguous().view(torch.int16)  # little-endian: the even column is the low byte
    return ((pairs & 0xF) | ((pairs >> BITS) & 0xF0)).to(torch.uint8).view(torch.int8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack`."""
    low = (packed << BITS) >> BITS
    high = packed >> BITS
    return torch.stack([low, high], dim=-1).flatten(-2)


def pack_for_tinygemm(quantized: Int4Weight) -> tuple[torch.Tensor, torch.Tensor]:
    """The same weight for `aten._weight_int4pack_mm`, padded to whole tiles.

    uint8 (rows, columns / 2) codes 0 ... 15 with even columns in the high nibble, for
    `aten._convert_weight_to_int4pack`, and bfloat16 (groups, rows, 2) scales and zero points. Rows are padded to a
    multiple of 8, columns to one of 128; the kernel computes with (code - 8) * scale + zero_point.
    """
    rows, columns = quantized.codes.shape
    more_rows, more_columns = -rows % TILE_ROWS, -columns % (TILE_COLUMNS * INNER_TILES)
    more_groups = more_columns * quantized.scale.shape[0] // columns
    codes = torch.nn.functional.pad(quantized.codes + OFFSET, (0, more_columns, 0, more_rows)).to(torch.uint8)
    of_groups = torch.stack([quantized.scale, quantized.zero_point], dim=-1)
    padded = torch.nn.functional.pad(of_groups, (0, 0, 0, more_rows, 0, more_groups))
    return codes[:, ::2] << BITS | codes[:, 1::2], padded.contiguous()


def unpack_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """int8 (rows, columns) codes, the padding included, of what `aten._convert_weight_to_int4pack` made.

    tiles int32 (rows / 8, columns / 128, 32, 4): lane 4 r + c holds, of a pair of tiles, row r and of each tile columns
    2 c, 2 c + 1, 2 c + 8 and 2 c + 9, in one integer. The order of its bits is that of PyTorch's int4mm.cu.
    """
    lanes = tiles.view(*tiles.shape[:2], TILE_ROWS, 4, INNER_TILES // 2, 1, 1, 1)
    two = torch.arange(2, dtype=torch.int32, device=tiles.device)
    bits = 8 * two.view(2, 1, 1) + 4 * two.view(2, 1) + 16 * two  # of the tile of a pair, of its half, of the column
    codes = (lanes >> bits) & LEVELS
    # Row tile and row make a row; column tile, pair, tile, half, c, and the last bit of the column make a column.
    in_order = codes.permute(0, 2, 1, 4, 5, 6, 3, 7).reshape(len(tiles) * TILE_ROWS, -1)
    return (in_order - OFFSET).to(torch.int8)


def dequantize_tiles(tiles: torch.Tensor, scale_and_zero: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The (rows, columns) weight, the padding included, of tiles and the scales that belong to them."""
    if tiles.is_cuda:
        from int4_qat import tile_kernel  # Triton comes with torch for CUDA alone

        return tile_kernel.dequantize_tiles(tiles, scale_and_zero, dtype)
    return dequantize(Int4Weight(unpack_tiles(tiles), *scale_and_zero.unbind(-1))).to(dtype)


def stored_bytes(quantized: Int4Weight) -> int:
    """Bytes of a packed weight with its scales and zero points."""
    return quantized.codes.numel() * BITS // 8 + quantized.scale.nbytes + quantized.zero_point.nbytes


@functools.cache
def _compiled(function):
    """Fewer kernels in place of a chain of passes over the weight, that round where the chain does.

    It holds eight shapes of weights, then runs uncompiled, and says so; a decoder has about five.
    merge and fake_quantize one by one: compiled together on a GPU, the rounding to bfloat16 between them is left out,
    in spite of EXACT.
    """
    return torch.compile(function, dynamic=False, options=EXACT)


def _store(values: torch.Tensor) -> torch.Tensor:
    return values.squeeze(-1).t().contiguous().to(STORAGE_DTYPE)


def _per_group(values: torch.Tensor) -> torch.Tensor:
    return values.t().float().unsqueeze(-1)
