"""Compute merged_weight's deployed weight Q(W + s·BA), and the gradients of its grid, in one GPU kernel each.

PyTorch's own compiler fuses no matrix product with what follows it, so that a weight would pass through memory four
times (docs/gpu-details.md). Every operation rounds as in `blocks.merge` and in `int4` on a CPU: BA is summed by fused
multiply-adds in the order of the rank, and the compiler fuses no other operation.
"""

import torch
import triton
import triton.language as tl

from int4_qat.quantization import int4, schemes
from int4_qat.quantization.int4 import AnyGrid, MovedGrid
from int4_qat.quantization.schemes import Scheme

ROWS = 32  # of the weight in one program, which takes one group of columns
# Where the grid of the codes comes from: it is the weight's own, by the kind of zero point, or it is given.
OWN = {schemes.FLOAT: 0, schemes.INTEGER: 1, None: 2}
GIVEN = 3
FLOAT, SYMMETRIC, ON_GIVEN = tl.constexpr(OWN[schemes.FLOAT]), tl.constexpr(OWN[None]), tl.constexpr(GIVEN)
LEVELS, OFFSET = tl.constexpr(int4.LEVELS), tl.constexpr(int4.OFFSET)
HALF_OF_LEVELS = tl.constexpr(int4.LEVELS / 2)
SMALLEST_RANGE = tl.constexpr(int4.SMALLEST_RANGE)
STORED_BITS, LAST_BIT = tl.constexpr(int4.STORED_BITS), tl.constexpr(int4.FLOAT32_BITS - 1)
WHOLE = tl.constexpr(1.5 * 2**23)  # x + WHOLE - WHOLE rounds x to the nearest whole number, ties to even


def fake_quantize(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, scheme: Scheme, grid: AnyGrid | None
) -> torch.Tensor:
    """Return the same as merged_weight.fake_quantize_merged, which says more, for tensors on a GPU."""
    deployed = torch.empty_like(weight, memory_format=torch.contiguous_format)
    values = [weight, weight] if grid is None else [part.contiguous() for part in (grid.scale, grid.zero_point)]
    _launch(_deploy, weight, a, b, scaling, scheme, grid, [*values, deployed])
    return deployed


def grid_gradient(
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    scheme: Scheme,
    grid: AnyGrid,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same as merged_weight.grid_gradient, for tensors on a GPU; only the order of the sums differs."""
    of_scale, of_zero_point = (torch.empty(grid.scale.shape, device=weight.device) for _ in range(2))
    _launch(_sum_gradients, weight, a, b, scaling, scheme, grid, [gradient.contiguous(), of_scale, of_zero_point])
    return of_scale, of_zero_point


def _launch(kernel, weight, a, b, scaling, scheme, grid, more) -> None:
    """Run a kernel on every group of columns; without a grid, the weight takes the place of those that are not read."""
    rows, columns = weight.shape
    start = grid.start if isinstance(grid, MovedGrid) else grid
    found_on = [weight, weight] if grid is None else [part.contiguous() for part in (start.scale, start.zero_point)]
    kind = OWN[scheme.zero_point] if grid is None else GIVEN
    programs = (triton.cdiv(rows, ROWS), columns // scheme.group_size)
    tensors = (weight.contiguous(), a.contiguous(), b.contiguous(), *found_on)
    sizes = (scaling, rows, columns, len(a), kind, scheme.group_size, ROWS)
    with torch.cuda.device_of(weight):  # Triton launches on the current GPU
        kernel[programs](*tensors, *more, *sizes, enable_fp_fusion=False)


@triton.jit
def _deploy(
    weight,
    a,
    b,
    start_scale,
    start_zero,
    value_scale,
    value_zero,
    deployed,
    scaling,
    rows,
    columns,
    RANK: tl.constexpr,
    KIND: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write one group of some rows of the deployed weight."""
    row, column, of_group, place, inside = _place(rows, columns, GROUP_SIZE, ROWS)
    merged = _merge(weight, a, b, scaling, columns, row, column, place, inside, RANK)
    scale, low = _grid(merged, start_scale, start_zero, of_group, inside, KIND)
    codes = _codes(merged, scale, low)
    if KIND != ON_GIVEN:
        zero = _to_bfloat16(low + scale * OFFSET)
        scale = _to_bfloat16(scale)
    else:
        scale = tl.load(value_scale + of_group, mask=inside, other=1.0).to(tl.float32)
        zero = tl.load(value_zero + of_group, mask=inside, other=0.0).to(tl.float32)
    value = codes * scale[:, None] + zero[:, None]
    if deployed.dtype.element_ty == tl.bfloat16:
        value = _to_bfloat16(value)
    tl.store(deployed + place, value.to(deployed.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _sum_gradients(
    weight,
    a,
    b,
    start_scale,
    start_zero,
    gradient,
    of_scale,
    of_zero,
    scaling,
    rows,
    columns,
    RANK: tl.constexpr,
    KIND: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the gradients of a group's scale and zero point for some rows, given the deployed weight's gradient."""
    row, column, of_group, place, inside = _place(rows, columns, GROUP_SIZE, ROWS)
    merged = _merge(weight, a, b, scaling, columns, row, column, place, inside, RANK)
    scale, low = _grid(merged, start_scale, start_zero, of_group, inside, KIND)
    upstream = tl.load(gradient + place, mask=inside[:, None], other=0.0).to(tl.float32)
    tl.store(of_scale + of_group, tl.sum(upstream * _codes(merged, scale, low), axis=1), mask=inside)
    tl.store(of_zero + of_group, tl.sum(upstream, axis=1), mask=inside)


@triton.jit
def _place(rows, columns, GROUP_SIZE: tl.constexpr, ROWS: tl.constexpr):
    """Return this program's rows and columns, where its grids and weights are in memory, and which rows exist."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * GROUP_SIZE + tl.arange(0, GROUP_SIZE)
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    return row, column, tl.program_id(1) * rows + row, place, row < rows


@triton.jit
def _merge(weight, a, b, scaling, columns, row, column, place, inside, RANK: tl.constexpr):
    """Return W + s·BA, summed in fp32 and rounded to bfloat16 once."""
    delta = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for k in range(RANK):
        left = tl.load(b + row * RANK + k, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(a + k * columns + column).to(tl.float32)
        delta = tl.fma(left[:, None], right[None, :], delta)
    return _to_bfloat16(delta * scaling + tl.load(weight + place, mask=inside[:, None], other=0.0).to(tl.float32))


@triton.jit
def _grid(merged, start_scale, start_zero, of_group, inside, KIND: tl.constexpr):
    """Return scale and lowest value of the group in each row, given or as int4.GRIDS finds them."""
    if KIND == ON_GIVEN:
        scale = tl.load(start_scale + of_group, mask=inside, other=1.0).to(tl.float32)
        low = tl.load(start_zero + of_group, mask=inside, other=0.0).to(tl.float32) - OFFSET * scale
    elif KIND == SYMMETRIC:
        scale = _step(tl.max(tl.abs(merged), axis=1), HALF_OF_LEVELS)
        scale = _round_bits(scale, tl.full(scale.shape, STORED_BITS, tl.int32))
        low = -OFFSET * scale
    elif KIND == FLOAT:
        low = tl.min(merged, axis=1)
        scale = _step(tl.max(merged, axis=1) - low, LEVELS)
    else:
        low = tl.minimum(tl.min(merged, axis=1), 0.0)
        scale = _step(tl.maximum(tl.max(merged, axis=1), 0.0) - low, LEVELS)
        lowest = tl.minimum(tl.maximum(_whole(tl.div_rn(low, scale)), -LEVELS), 0.0)
        size = tl.abs(lowest + OFFSET)
        bits = tl.where((size == 3) | (size == 6), 6, tl.where((size == 5) | (size == 7), 5, STORED_BITS))
        scale = _round_bits(scale, bits)
        low = lowest * scale
    return scale, low


@triton.jit
def _codes(merged, scale, low):
    """Return the codes -8 ... 7 of the values nearest to a weight, in fp32."""
    steps = _whole(tl.div_rn(merged - low[:, None], tl.broadcast_to(scale[:, None], merged.shape)))
    return tl.minimum(tl.maximum(steps, 0.0), LEVELS) - OFFSET


@triton.jit
def _step(width, steps: tl.constexpr):
    return tl.div_rn(tl.maximum(width, SMALLEST_RANGE), tl.full(width.shape, steps, tl.float32))


@triton.jit
def _round_bits(values, bits):
    """Round positive values as int4 does."""
    half = tl.full(bits.shape, 1, tl.int32) << (-bits + LAST_BIT)
    return ((values.to(tl.int32, bitcast=True) + half) & (-2 * half)).to(tl.float32, bitcast=True)


@triton.jit
def _to_bfloat16(values):
    """Round to bfloat16, ties to even, in fp32; a cast of Triton's interpreter, which tests run, rounds down."""
    bits = values.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def _whole(values):
    return (values + WHOLE) - WHOLE
