"""int4 weights on a GPU, in the tiles of PyTorch's tinygemm kernel.

The tiles hold the codes of the exported weight, so that a GPU computes with what was exported.
"""

import torch

from int4_qat.quantization import int4
from int4_qat.quantization.int4 import Int4Weight

# PyTorch's tinygemm kernel reads 8 rows and 16 columns in one tile, and of each row the most at once if 8 tiles stand
# side by side.
TILE_ROWS, TILE_COLUMNS, INNER_TILES = 8, 16, 8


def pack_for_tinygemm(quantized: Int4Weight) -> tuple[torch.Tensor, torch.Tensor]:
    """The same weight for `aten._weight_int4pack_mm`, padded to whole tiles.

    uint8 (rows, columns / 2) codes 0 ... 15 with even columns in the high nibble, for
    `aten._convert_weight_to_int4pack`, and bfloat16 (groups, rows, 2) scales and zero points. Rows are padded to a
    multiple of 8, columns to one of 128; the kernel computes with (code - 8) * scale + zero_point.
    """
    rows, columns = quantized.codes.shape
    more_rows, more_columns = -rows % TILE_ROWS, -columns % (TILE_COLUMNS * INNER_TILES)
    more_groups = more_columns * quantized.scale.shape[0] // columns
    codes = torch.nn.functional.pad(quantized.codes + int4.OFFSET, (0, more_columns, 0, more_rows)).to(torch.uint8)
    of_groups = torch.stack([quantized.scale, quantized.zero_point], dim=-1)
    padded = torch.nn.functional.pad(of_groups, (0, 0, 0, more_rows, 0, more_groups))
    return codes[:, ::2] << int4.BITS | codes[:, 1::2], padded.contiguous()


def unpack_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """int8 (rows, columns) codes, the padding included, of what `aten._convert_weight_to_int4pack` made.

    tiles int32 (rows / 8, columns / 128, 32, 4): lane 4 r + c holds, of a pair of tiles, row r and of each tile columns
    2 c, 2 c + 1, 2 c + 8 and 2 c + 9, in one integer. The order of its bits is that of PyTorch's int4mm.cu.
    """
    lanes = tiles.view(*tiles.shape[:2], TILE_ROWS, 4, INNER_TILES // 2, 1, 1, 1)
    two = torch.arange(2, dtype=torch.int32, device=tiles.device)
    bits = 8 * two.view(2, 1, 1) + 4 * two.view(2, 1) + 16 * two  # of the tile of a pair, of its half, of the column
    codes = (lanes >> bits) & int4.LEVELS
    # Row tile and row make a row; column tile, pair, tile, half, c, and the last bit of the column make a column.
    in_order = codes.permute(0, 2, 1, 4, 5, 6, 3, 7).reshape(len(tiles) * TILE_ROWS, -1)
    return (in_order - int4.OFFSET).to(torch.int8)


def dequantize_tiles(tiles: torch.Tensor, scale_and_zero: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The (rows, columns) weight, the padding included, of tiles and the scales that belong to them."""
    if tiles.is_cuda:
        from int4_qat.kernels import tile_kernel  # Triton comes with torch for CUDA alone

        return tile_kernel.dequantize_tiles(tiles, scale_and_zero, dtype)
    return int4.dequantize(Int4Weight(unpack_tiles(tiles), *scale_and_zero.unbind(-1))).to(dtype)


class TilePackedLinear(torch.nn.Module):
    """A linear on an int4 weight, on a GPU.

    Few tokens are multiplied by PyTorch's tinygemm kernel, in bfloat16. For more, or in another dtype, the weight is
    dequantized at each call, bit for bit as the CPU's loader does it, and multiplied as any other. The buffers are
    plain ones, since torch.compile takes each tensor of torchao's apart at every call, in Python.
    """

    FEW_TOKENS = 24  # tinygemm's time grows with each; here both ways take as long (docs/gpu.md)

    def __init__(self, linear: torch.nn.Linear, weight: Int4Weight) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.codes.shape
        self.group_size = self.inputs // len(weight.scale)
        pairs, scale_and_zero = pack_for_tinygemm(weight)
        self.register_buffer("tiles", torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_TILES))
        self.register_buffer("scale_and_zero", scale_and_zero)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs), in the dtype of x."""
        rows = x.reshape(-1, self.inputs)
        if rows.dtype == torch.bfloat16 and 0 < len(rows) <= self.FEW_TOKENS:
            y = self.tinygemm(rows)
            y = y if self.bias is None else y + self.bias
        else:
            weight = dequantize_tiles(self.tiles, self.scale_and_zero, x.dtype)
            y = torch.nn.functional.linear(rows, weight[: self.outputs, : self.inputs], self.bias)
        return y.reshape(*x.shape[:-1], self.outputs)

    def tinygemm(self, rows: torch.Tensor) -> torch.Tensor:
        """bfloat16 (tokens, inputs) to (tokens, outputs), at least one token."""
        padding = len(self.scale_and_zero) * self.group_size - self.inputs
        padded = torch.nn.functional.pad(rows, (0, padding)).contiguous()  # the kernel takes nothing else
        y = torch.ops.aten._weight_int4pack_mm(padded, self.tiles, self.group_size, self.scale_and_zero)
        return y[:, : self.outputs]
