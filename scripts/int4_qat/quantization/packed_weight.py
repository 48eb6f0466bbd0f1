"""Pack and unpack int4 weights in compressed-tensors' `pack-quantized` layout: four bits each, in int32 words.

    weight = (code - zero_point) * scale, code and zero_point whole numbers from -8 to 7

A zero point of `int4` that is k times the scale is stored as -k. A word holds eight values, each raised by 8, the
first in the lowest four bits. Codes are packed along the columns, zero points along the rows. The unused bits of a last
word are 0.
"""

import torch

from int4_qat.checkpoint.blocks import STORAGE_DTYPE
from int4_qat.quantization import int4
from int4_qat.quantization.int4 import Grid, Int4Weight

METHOD, LAYOUT = "compressed-tensors", "pack-quantized"  # as config.json calls them
PER_WORD = 32 // int4.BITS
PARTS = PACKED, SCALE, ZERO_POINT, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


def part_name(key: str, part: str) -> str:
    """Return the name of a stored part of a weight."""
    return f"{key.removesuffix('.weight')}.{part}"


def weight_of(key: str) -> str:
    """Return the name of the weight that a stored tensor is or belongs to."""
    module, _, part = key.rpartition(".")
    return f"{module}.weight" if part in PARTS else key


def layout(rows: int, columns: int, group_size: int, symmetric: bool) -> dict[str, tuple[tuple, torch.dtype]]:
    """Return the shape and dtype of each stored part of a weight; a symmetric weight has no zero points."""
    groups = columns // group_size
    parts = {
        PACKED: ((rows, -(-columns // PER_WORD)), torch.int32),
        SCALE: ((rows, groups), STORAGE_DTYPE),
        ZERO_POINT: ((-(-rows // PER_WORD), groups), torch.int32),
        SHAPE: ((2,), torch.int64),
    }
    return {part: stored for part, stored in parts.items() if not (symmetric and part == ZERO_POINT)}


def pack(values: torch.Tensor) -> torch.Tensor:
    """Return int8 (rows, columns) values from -8 to 7, packed in int32 (rows, columns / 8, rounded up)."""
    raised = (values + int4.OFFSET).to(torch.uint8)
    pairs = torch.nn.functional.pad(raised, (0, -values.shape[1] % PER_WORD)).unflatten(1, (-1, 2))
    return (pairs[..., 0] | (pairs[..., 1] << int4.BITS)).contiguous().view(torch.int32)  # bytes are little-endian


def unpack(words: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the int8 (rows, columns) values that `pack` packed."""
    pairs = words.contiguous().view(torch.uint8)
    raised = torch.stack([pairs & int4.LEVELS, pairs >> int4.BITS], dim=-1).flatten(1)
    return raised[:, :columns].to(torch.int8) - int4.OFFSET


def pack_zero_points(grid: Grid) -> torch.Tensor:
    """Return the zero points of a grid in int32 (rows / 8, rounded up, groups); raise ValueError as `steps_of` does."""
    return pack(-int4.steps_of(grid)).t().contiguous()


def unpack_zero_points(words: torch.Tensor, scale: torch.Tensor) -> Grid:
    """Return the grid of packed zero points and a scale (groups, rows)."""
    return int4.of_steps(-unpack(words.t(), scale.shape[1]), scale)


def grid_of(scale: torch.Tensor, zero_points: torch.Tensor | None) -> Grid:
    """Return the grid of stored scales (rows, groups) and packed zero points, which are None for a symmetric weight."""
    by_group = scale.t().contiguous()
    if zero_points is None:
        return Grid(by_group, torch.zeros_like(by_group))
    return unpack_zero_points(zero_points, by_group)


def of_parts(
    packed: torch.Tensor, scale: torch.Tensor, zero_points: torch.Tensor | None, shape: torch.Tensor
) -> Int4Weight:
    """Return the weight made of its stored parts, which come in the order of PARTS."""
    return Int4Weight(unpack(packed, int(shape[1])), *grid_of(scale, zero_points))
