"""Compute with int4 weights on a GPU, in the tiles of PyTorch's tinygemm kernel.

The tiles hold the codes of the exported weight, so that a GPU computes with what was exported.
"""

import torch

from int4_qat.quantization import int4
from int4_qat.quantization.int4 import Int4Weight

# PyTorch's tinygemm kernel reads 8 rows and 16 columns in one tile. It reads the most of each row at once if 8 tiles
# are side by side.
TILE_ROWS, TILE_COLUMNS, INNER_TILES = 8, 16, 8


def pack_for_tinygemm(quantized: Int4Weight) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same weight for `aten._weight_int4pack_mm`, padded to whole tiles.

    The first tensor holds codes 0 ... 15 in uint8 (rows, columns / 2), with even columns in the high nibble, for
    `aten._convert_weight_to_int4pack`. The second holds scales and zero points in bfloat16 (groups, rows, 2). Rows are
    padded to a multiple of 8, columns to a multiple of 128; the kernel computes with (code - 8) * scale + zero_point.
    """
    rows, columns = quantized.codes.shape
    more_rows, more_columns = -rows % TILE_ROWS, -columns % (TILE_COLUMNS * INNER_TILES)
    more_groups = more_columns * quantized.scale.shape[0] // columns
    codes = torch.nn.functional.pad(quantized.codes + int4.OFFSET, (0, more_columns, 0, more_rows)).to(torch.uint8)
    of_groups = torch.stack([quantized.scale, quantized.zero_point], dim=-1)
    padded = torch.nn.functional.pad(of_groups, (0, 0, 0, more_rows, 0, more_groups))
    return codes[:, ::2] << int4.BITS | codes[:, 1::2], padded.contiguous()


def unpack_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """Return int8 (rows, columns) codes, padding included, of tiles that `aten._convert_weight_to_int4pack` made.

    `tiles` is int32 (rows / 8, columns / 128, 32, 4). Lane 4 r + c has one integer for each pair of tiles; it holds
    columns 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of row r of both tiles, with the bits in the order of PyTorch's int4mm.cu.
    """
    lanes = tiles.view(*tiles.shape[:2], TILE_ROWS, 4, INNER_TILES // 2, 1, 1, 1)
    two = torch.arange(2, dtype=torch.int32, device=tiles.device)
    bits = 8 * two.view(2, 1, 1) + 4 * two.view(2, 1) + 16 * two  # by tile of the pair, half of the tile, column
    codes = (lanes >> bits) & int4.LEVELS
    # Row tile and row make a row; column tile, pair, tile, half, c, and the last bit of the column make a column.
    in_order = codes.permute(0, 2, 1, 4, 5, 6, 3, 7).reshape(len(tiles) * TILE_ROWS, -1)
    return (in_order - int4.OFFSET).to(torch.int8)


def dequantize_tiles(tiles: torch.Tensor, scale_and_zero: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the (rows, columns) weight, padding included, of tiles and their scales and zero points."""
    if tiles.is_cuda:
        from int4_qat.kernels import tile_kernel  # Triton comes only with torch for CUDA

        return tile_kernel.dequantize_tiles(tiles, scale_and_zero, dtype)
    return int4.dequantize(Int4Weight(unpack_tiles(tiles), *scale_and_zero.unbind(-1))).to(dtype)


class TilePackedLinear(torch.nn.Module):
    """A linear with an int4 weight, on a GPU.

    PyTorch's tinygemm kernel multiplies a few tokens in bfloat16. For more tokens, or another dtype, the weight is
    dequantized at each call, bit for bit as the CPU's loader does it, and multiplied like any other. The buffers are
    plain tensors, since torch.compile takes each of torchao's tensors apart at every call, in Python.
    """

    FEW_TOKENS = 24  # tinygemm's time grows with each token; at 24 both ways take equally long (docs/gpu-details.md)

    def __init__(self, linear: torch.nn.Linear, weight: Int4Weight) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.codes.shape
        self.group_size = self.inputs // len(weight.scale)
        pairs, scale_and_zero = pack_for_tinygemm(weight)
        self.register_buffer("tiles", torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_TILES))
        self.register_buffer("scale_and_zero", scale_and_zero)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., outputs) for x (..., inputs), in the dtype of x."""
        rows = x.reshape(-1, self.inputs)
        if rows.dtype == torch.bfloat16 and 0 < len(rows) <= self.FEW_TOKENS:
            y = self.tinygemm(rows)
            y = y if self.bias is None else y + self.bias
        else:
            weight = dequantize_tiles(self.tiles, self.scale_and_zero, x.dtype)
            y = torch.nn.functional.linear(rows, weight[: self.outputs, : self.inputs], self.bias)
        return y.reshape(*x.shape[:-1], self.outputs)

    def tinygemm(self, rows: torch.Tensor) -> torch.Tensor:
        """Return bfloat16 (tokens, outputs) for bfloat16 rows (tokens, inputs), at least one token."""
        padding = len(self.scale_and_zero) * self.group_size - self.inputs
        padded = torch.nn.functional.pad(rows, (0, padding)).contiguous()  # the kernel accepts nothing else
        y = torch.ops.aten._weight_int4pack_mm(padded, self.tiles, self.group_size, self.scale_and_zero)
        return y[:, : self.outputs]
