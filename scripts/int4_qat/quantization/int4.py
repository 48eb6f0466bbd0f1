"""Define int4 in one place, group by group: how a weight is quantized, and which values its codes represent.

Every group of `group_size` consecutive input features of a weight row has a grid of 16 values,

    value = code * scale + zero_point        (code -8 ... 7; scale and zero point in bfloat16, as torchao stores them)

and each weight gets the nearest of them. Let low be the value of code -8, and range = max - min, at least 1e-6:

    zero point  scale                                      low
    float       range / 15                                 min
    integer     range / 15, to 5, 6 or 8 significant bits  -k * scale, k = 0 ... 15; the range is stretched to hold 0
    none        max|w| / 7.5, to 8 significant bits        -8 * scale, so that the zero point is 0

The float zero point follows the arithmetic of torchao's `Int4WeightFakeQuantizer` and of MSLK's `int4_row_quantize_zp`,
the kernels' quantizer, on a CPU: codes are found with the scale in fp32, before it is rounded to bfloat16. On a GPU
those two multiply by 1/15; this module gives the CPU's result on every device. torchao's fake quantizer omits the
rounding of scale and zero point; `fake_quantize` here includes it, so that training sees the weight that is deployed.

With an integer zero point, zero_point = (8 - k) * scale is exact in bfloat16, so that the same grid can be stored as
codes and integers k, without a second rounding. The scale keeps all 8 significant bits if |8 - k| is 0 or a power of
two, as it is for most groups, 6 bits if it is 3 or 6, and 5 bits if it is 5 or 7 (docs/extending.md).

torchao's tile_packed_to_4d has a quantizer of its own, which computes in the weight's dtype. From fp32 it gives the
same bits; from bfloat16 one code in forty differs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from int4_qat.checkpoint.blocks import STORAGE_DTYPE
from int4_qat.quantization import schemes
from int4_qat.quantization.schemes import Scheme

BITS = 4
LEVELS = 2**BITS - 1
OFFSET = 2 ** (BITS - 1)
SMALLEST_RANGE = 1e-6
STORED_BITS = 8  # significant bits of a bfloat16
FLOAT32_BITS = 24


class Grid(NamedTuple):
    """The values that the groups of a (rows, columns) weight can have."""

    scale: torch.Tensor  # bfloat16 (columns / group_size, rows)
    zero_point: torch.Tensor  # bfloat16 (columns / group_size, rows)

    def of_rows(self, rows: slice) -> "Grid":
        """Return the grid of some rows of the weight."""
        return Grid(self.scale[:, rows], self.zero_point[:, rows])

    def to(self, device: torch.device) -> "Grid":
        """Return the grid on a device."""
        return Grid(self.scale.to(device), self.zero_point.to(device))


class MovedGrid(NamedTuple):
    """A grid whose values have moved in training, and the grid from which it started, on which codes are found."""

    scale: torch.Tensor  # as in Grid
    zero_point: torch.Tensor
    start: Grid

    def of_rows(self, rows: slice) -> "MovedGrid":
        """Return the grid of some rows of the weight."""
        return MovedGrid(self.scale[:, rows], self.zero_point[:, rows], self.start.of_rows(rows))

    def to(self, device: torch.device) -> "MovedGrid":
        """Return the grid on a device."""
        return MovedGrid(self.scale.to(device), self.zero_point.to(device), self.start.to(device))


AnyGrid = Grid | MovedGrid


class Int4Weight(NamedTuple):
    """A quantized (rows, columns) weight."""

    codes: torch.Tensor  # int8 (rows, columns), values -8 ... 7
    scale: torch.Tensor  # as in Grid
    zero_point: torch.Tensor

    @property
    def grid(self) -> Grid:
        return Grid(self.scale, self.zero_point)


def quantize(weight: torch.Tensor, scheme: Scheme, grid: AnyGrid | None = None) -> Int4Weight:
    """Quantize a (rows, columns) weight of any float dtype, on its own grid or on a given one.

    Raise ValueError if the scheme's group size does not divide columns.
    """
    rows, columns = weight.shape
    if columns % scheme.group_size:
        raise ValueError(f"group_size: expected a divisor of {columns} input features, found {scheme.group_size}")
    groups = weight.detach().float().view(rows, columns // scheme.group_size, scheme.group_size)
    scale, low = GRIDS[scheme.zero_point](groups) if grid is None else _of_stored(_of_codes(grid))
    codes = _steps(groups, scale, low).sub_(OFFSET).view(rows, columns).to(torch.int8)
    if grid is None:
        return Int4Weight(codes, _store(scale), _store(low + scale * OFFSET))
    return Int4Weight(codes, grid.scale, grid.zero_point)


def nearest_grid(scale: torch.Tensor, offset: torch.Tensor, scheme: Scheme) -> Grid:
    """Return the grid that a scheme can store nearest to a given one, fp32 (columns / group_size, rows).

    `offset` is the zero point in steps of the scale; a scheme without a zero point ignores it.
    """
    bits = STORED_BITS
    if scheme.zero_point == schemes.INTEGER:
        offset = offset.round().clamp(OFFSET - LEVELS, OFFSET)
        bits = _scale_bits(offset)
    elif scheme.zero_point is None:
        offset = torch.zeros_like(offset)
    scale = _round_bits(scale, bits)
    return Grid(scale.to(STORAGE_DTYPE), (offset * scale).to(STORAGE_DTYPE))


def steps_of(grid: Grid) -> torch.Tensor:
    """Return the zero points of a grid in steps of its scales, int8 (groups, rows), from -7 to 8.

    Raise ValueError if one is not such a whole number, as can happen with a float zero point.
    """
    steps = grid.zero_point.float() / grid.scale.float()
    whole = steps.round()
    if not (torch.equal(steps, whole) and whole.min() >= OFFSET - LEVELS and whole.max() <= OFFSET):
        raise ValueError(f"expected zero points of {OFFSET - LEVELS} to {OFFSET} whole steps of the scale")
    return whole.to(torch.int8)


def of_steps(steps: torch.Tensor, scale: torch.Tensor) -> Grid:
    """Return the grid whose zero points are the given numbers of steps of its scales."""
    return Grid(scale, (steps * scale.float()).to(scale.dtype))


def grid_gradient(
    weight: torch.Tensor, scheme: Scheme, grid: AnyGrid, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of scale and zero point, fp32 (columns / group_size, rows).

    `gradient` is the gradient with respect to the deployed weight, code * scale + zero_point (rows, columns).
    """
    codes = quantize(weight, scheme, grid).codes.view(len(weight), len(grid.scale), -1)
    gradient = gradient.float().view(codes.shape)
    return (gradient * codes).sum(-1).t(), gradient.sum(-1).t()


def nearest_on(grid: Grid) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that takes a column, fp32 (rows), to the nearest values of a grid that has one group."""
    scale, low = (part.flatten() for part in _of_stored(grid))
    return lambda column: _steps(column, scale, low).mul_(scale).add_(low)


def _steps(values: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Return how many steps above its lowest value a grid's nearest value is, 0 ... LEVELS."""
    return (values - low).div_(scale).round_().clamp_(0, LEVELS)


def _float_grid(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and lowest value, fp32 (rows, groups, 1), of fp32 (rows, groups, group_size)."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    return _scale(high - low, LEVELS), low


def _integer_grid(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = _scale(high - low, LEVELS)
    lowest = (low / scale).round_().clamp_(-LEVELS, 0)
    scale = _round_bits(scale, _scale_bits(lowest + OFFSET))
    return scale, lowest * scale


def _symmetric_grid(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = _round_bits(_scale(groups.abs().amax(-1, keepdim=True), LEVELS / 2), STORED_BITS)
    return scale, -OFFSET * scale


GRIDS = {schemes.FLOAT: _float_grid, schemes.INTEGER: _integer_grid, None: _symmetric_grid}


def empty(weight: torch.Tensor, scheme: Scheme) -> Int4Weight:
    """Return the result of `quantize` without values, on the meta device, for its shapes."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.int8, device="meta")
    of_groups = torch.empty(columns // scheme.group_size, rows, dtype=STORAGE_DTYPE, device="meta")
    return Int4Weight(codes, of_groups, of_groups)


def dequantize(quantized: Int4Weight) -> torch.Tensor:
    """Return the fp32 (rows, columns) weight that the codes represent, with scale and zero point as stored."""
    codes, scale, zero_point = quantized
    rows, columns = codes.shape
    groups = codes.float().view(rows, scale.shape[0], -1)
    return (groups * _per_group(scale) + _per_group(zero_point)).view(rows, columns)


def fake_quantize(
    weight: torch.Tensor, scheme: Scheme, dtype: torch.dtype | None = None, grid: AnyGrid | None = None
) -> torch.Tensor:
    """Return a weight as it is after export and loading, by default in its own dtype and on its own grid."""
    return dequantize(quantize(weight, scheme, grid)).to(dtype or weight.dtype)


def stored_bytes(quantized: Int4Weight) -> int:
    """Return the bytes that a packed weight takes with its scales and zero points."""
    return quantized.codes.numel() * BITS // 8 + quantized.scale.nbytes + quantized.zero_point.nbytes


def _scale(width: torch.Tensor, steps: float) -> torch.Tensor:
    """Return the width of a step in fp32; dividing in fp64 gives the correctly rounded quotient on every device."""
    return (width.clamp(min=SMALLEST_RANGE).double() / steps).float()


def _scale_bits(offset: torch.Tensor) -> torch.Tensor:
    """Return how many bits a scale may have for its product with a whole offset, -8 ... 8, to be exact in bfloat16."""
    size = offset.abs()
    bits = torch.where((size == 5) | (size == 7), 5, STORED_BITS)
    return torch.where((size == 3) | (size == 6), 6, bits).int()


def _round_bits(values: torch.Tensor, bits: int | torch.Tensor) -> torch.Tensor:
    """Round positive fp32 values to `bits` significant bits, without a cast, which a compiler may leave out."""
    dropped = FLOAT32_BITS - bits
    half = 1 << (dropped - 1)
    return ((values.view(torch.int32) + half) & -2 * half).view(torch.float32)


def _store(values: torch.Tensor) -> torch.Tensor:
    return values.squeeze(-1).t().contiguous().to(STORAGE_DTYPE)


def _per_group(values: torch.Tensor) -> torch.Tensor:
    return values.t().float().unsqueeze(-1)


def _of_codes(grid: AnyGrid) -> Grid:
    """Return the grid on which the codes of a weight are found."""
    return grid.start if isinstance(grid, MovedGrid) else grid


def _of_stored(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    scale, zero_point = map(_per_group, grid)
    return scale, zero_point - OFFSET * scale
