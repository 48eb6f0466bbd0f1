"""Run tiles.dequantize_tiles as one GPU kernel, about as fast as its bytes can be read and written.

The compiler's own kernel re-reads scales and codes for every weight, and takes almost four times as long
(docs/gpu-details.md).
"""

import torch
import triton
import triton.language as tl


def dequantize_tiles(tiles: torch.Tensor, scale_and_zero: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the same as tiles.dequantize_tiles, which says more, for tensors on a GPU."""
    row_tiles, column_tiles = tiles.shape[:2]
    groups, rows, _ = scale_and_zero.shape
    weight = torch.empty(rows, 128 * column_tiles, dtype=dtype, device=tiles.device)
    group_size = weight.shape[1] // groups
    with torch.cuda.device(tiles.device):  # Triton launches on the current GPU; a model can be spread over several
        _dequantize_tile[row_tiles, column_tiles](tiles, scale_and_zero, weight, rows, group_size, num_warps=2)
    return weight


@triton.jit
def _dequantize_tile(tiles, scale_and_zero, weight, rows, group_size: tl.constexpr):
    """Dequantize 8 rows x 128 columns of the weight; tiles.unpack_tiles says where each code is."""
    row_tile, column_tile, column_tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    lanes = tl.load(tiles + (row_tile * column_tiles + column_tile) * 128 + tl.arange(0, 128))
    two = tl.arange(0, 2)
    bits = 8 * two[:, None, None] + 4 * two[None, :, None] + 16 * two[None, None, :]
    codes = (tl.reshape(lanes, [8, 4, 4, 1]) >> tl.reshape(bits, [1, 1, 1, 8])) & 15
    in_order = tl.permute(tl.reshape(codes, [8, 4, 4, 4, 2]), [0, 2, 3, 1, 4])
    row = row_tile * 8 + tl.arange(0, 8)[:, None]
    column = column_tile * 128 + tl.arange(0, 128)[None, :]
    pair = scale_and_zero + 2 * (column // group_size * rows + row)
    scale, zero = tl.load(pair).to(tl.float32), tl.load(pair + 1).to(tl.float32)
    value = (tl.reshape(in_order, [8, 128]) - 8).to(tl.float32) * scale + zero
    tl.store(weight + row.to(tl.int64) * (128 * column_tiles) + column, value.to(weight.dtype.element_ty))
