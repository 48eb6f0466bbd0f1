"""Compute the weight with its adapter as it is deployed, at each step of a training that sees it."""

import functools

import torch

from int4_qat.checkpoint import blocks
from int4_qat.quantization import int4
from int4_qat.quantization.int4 import AnyGrid
from int4_qat.quantization.schemes import Scheme

# By default the compiler leaves out the rounding to bfloat16 between its steps, and divides less exactly on a GPU.
EXACT = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}


def fake_quantize_merged(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, scheme: Scheme, grid: AnyGrid | None = None
) -> torch.Tensor:
    """Return the deployed weight Q(W + s·BA), in the weight's dtype; on a CPU in blocks of rows that fit its cache.

    The weight is rounded on a given grid, or on its own, which then follows the weight from step to step.

    Training's autocast, which would round A and B to bfloat16 before they are multiplied, is off here, because the
    export uses none.
    """
    with torch.autocast(weight.device.type, enabled=False):
        if weight.is_cuda:
            merged = compiled(blocks.merge)(weight, a, b, scaling)
            return compiled(int4.fake_quantize)(merged, scheme, weight.dtype, grid)
        deployed = torch.empty_like(weight)
        for rows in blocks.row_blocks(*weight.shape):
            merged = blocks.merge(weight[rows], a, b[rows], scaling)
            deployed[rows] = int4.fake_quantize(merged, scheme, weight.dtype, grid and grid.of_rows(rows))
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
    """Return the gradients of scale and zero point, given the deployed weight's gradient (int4.grid_gradient)."""
    with torch.autocast(weight.device.type, enabled=False):
        if weight.is_cuda:
            merged = compiled(blocks.merge)(weight, a, b, scaling)
            return compiled(int4.grid_gradient)(merged, scheme, grid, gradient)
        found = [
            int4.grid_gradient(
                blocks.merge(weight[rows], a, b[rows], scaling), scheme, grid.of_rows(rows), gradient[rows]
            )
            for rows in blocks.row_blocks(*weight.shape)
        ]
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))


@functools.cache
def compiled(function):
    """Return a function compiled into fewer kernels than its chain of passes over the weight, with the same rounding.

    It is compiled for as many shapes of weights as `compilation` allows, 64, then runs uncompiled, and says so; a
    decoder has about five. `merge` and `fake_quantize` are compiled separately: compiled together on a GPU, they leave
    out the rounding to bfloat16 between them, in spite of EXACT.
    """
    return torch.compile(function, dynamic=False, options=EXACT)
