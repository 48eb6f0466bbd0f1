"""Apply a linear with the deployed weight, x Q(W + s·BA)ᵀ, as one operator that torch.compile leaves as it is.

Compiled with the layer around it, the weight would not be rounded as the export rounds it. If a layer were compiled
without its linears, each of them would end a graph, and Python would start every part of a step (docs/gpu-details.md).

With G = dy the chain rule gives dB = s·Gᵀ(xAᵀ), dA = s·(GB)ᵀx and dx = G·Q(W + s·BA), so no gradient has the size of a
weight. The weight is recomputed in the backward pass, so that no layer keeps a copy. If its grid is trained as well,
Gᵀx is computed for one linear at a time.
"""

import torch

from int4_qat.quantization import schemes
from int4_qat.quantization.int4 import AnyGrid, Grid, MovedGrid
from int4_qat.quantization.schemes import Scheme
from int4_qat.training import learned_grid, merged_weight
from int4_qat.training.learned_grid import LearnedGrid

Tensors = list[torch.Tensor]


def apply(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    scheme: Scheme,
    grid: AnyGrid | LearnedGrid | None,
) -> torch.Tensor:
    """Return (..., outputs) for x (..., inputs), in the dtype in which autocast multiplies.

    `grid` is a given grid, a learned one, or None for the weight's own.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return torch.ops.int4_qat.merged_linear(
        x.to(dtype), weight, a, b, scaling, scheme.group_size, scheme.zero_point, parts_of(grid)
    )


def parts_of(grid: AnyGrid | LearnedGrid | None) -> Tensors:
    """Return the tensors of a grid, as `grid_of` takes them; a learned grid's parameters are third and fourth."""
    if isinstance(grid, LearnedGrid):
        return [*grid.start, grid.log_scale, grid.shift, grid.scale, grid.offset]
    if isinstance(grid, MovedGrid):
        return [*grid.start, grid.scale, grid.zero_point]
    return [] if grid is None else [*grid]


def grid_of(parts: Tensors, scheme: Scheme) -> AnyGrid | None:
    """Return a grid from its parts: 2 for a plain grid, 4 for a moved one, 6 for a learned one; None without parts."""
    if not parts:
        return None
    start = Grid(*parts[:2])
    if is_learned(parts):
        return MovedGrid(*learned_grid.run(learned_grid.seen, *parts[2:], scheme), start)
    return MovedGrid(*parts[2:], start) if parts[2:] else start


def is_learned(parts: Tensors) -> bool:
    """Return whether the grid with these parts is trained."""
    return len(parts) == 6


@torch.library.custom_op("int4_qat::merged_linear", mutates_args=())
def _merged_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    group_size: int,
    zero_point: str | None,
    grid: Tensors,
) -> torch.Tensor:
    scheme = schemes.int4(group_size, zero_point)
    deployed = merged_weight.fake_quantize_merged(weight, a, b, scaling, scheme, grid_of(grid, scheme))
    return x @ deployed.to(x.dtype).T


@_merged_linear.register_fake
def _(x, weight, a, b, scaling, group_size, zero_point, grid):
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("int4_qat::merged_linear_backward", mutates_args=())
def _merged_linear_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    group_size: int,
    zero_point: str | None,
    grid: Tensors,
) -> Tensors:
    """Return the gradients of x, A and B, and those of a learned grid's log_scale and shift."""
    scheme = schemes.int4(group_size, zero_point)
    moved = grid_of(grid, scheme)
    deployed = merged_weight.fake_quantize_merged(weight, a, b, scaling, scheme, moved)
    dx = dy @ deployed.to(dy.dtype)
    rows, gradients = x.flatten(0, -2).to(dy.dtype), dy.flatten(0, -2)
    db = gradients.T @ (scaling * (rows @ a.T.to(dy.dtype)))
    da = scaling * (gradients @ b.to(dy.dtype)).T @ rows
    found = [dx.to(x.dtype), da.to(a.dtype), db.to(b.dtype)]
    if is_learned(grid):
        of_stored = merged_weight.grid_gradient(weight, a, b, scaling, scheme, moved, gradients.T @ rows)
        found += learned_grid.run(learned_grid.gradients, *grid[2:], *of_stored)
    return found


@_merged_linear_backward.register_fake
def _(dy, x, weight, a, b, scaling, group_size, zero_point, grid):
    return [torch.empty_like(part) for part in (x, a, b, *(grid[2:4] if is_learned(grid) else ()))]


def _keep(ctx, inputs, output) -> None:
    x, weight, a, b, ctx.scaling, ctx.group_size, ctx.zero_point, grid = inputs
    ctx.save_for_backward(x, weight, a, b, *grid)


def _backward(ctx, dy):
    x, weight, a, b, *grid = ctx.saved_tensors
    dx, da, db, *moved = torch.ops.int4_qat.merged_linear_backward(
        dy, x, weight, a, b, ctx.scaling, ctx.group_size, ctx.zero_point, grid
    )
    of_grid = [None, None, *moved, None, None] if moved else [None] * len(grid)
    return dx, None, da, db, None, None, None, of_grid


_merged_linear.register_autograd(_backward, setup_context=_keep)
