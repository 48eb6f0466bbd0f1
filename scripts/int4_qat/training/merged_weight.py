"""Compute the weight with its adapter as it is deployed, at each step of a training that sees it."""

import torch

from int4_qat.checkpoint import blocks
from int4_qat.quantization import int4
from int4_qat.quantization.int4 import AnyGrid
from int4_qat.quantization.schemes import Scheme


def fake_quantize_merged(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, scheme: Scheme, grid: AnyGrid | None = None
) -> torch.Tensor:
    """Return the deployed weight Q(W + s·BA), in the weight's dtype; on a CPU in blocks of rows that fit its cache.

    The weight is rounded on a given grid, or on its own, which then follows the weight from step to step.

    Training's autocast, which would round A and B to bfloat16 before they are multiplied, is off here, because the
    export uses none.
    """
    if weight.is_cuda:
        from int4_qat.training import merged_kernel  # Triton comes only with torch for CUDA

        return merged_kernel.fake_quantize(weight, a, b, scaling, scheme, grid)
    with torch.autocast(weight.device.type, enabled=False):
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
    if weight.is_cuda:
        from int4_qat.training import merged_kernel

        return merged_kernel.grid_gradient(weight, a, b, scaling, scheme, grid, gradient)
    with torch.autocast(weight.device.type, enabled=False):
        found = [
            int4.grid_gradient(
                blocks.merge(weight[rows], a, b[rows], scaling), scheme, grid.of_rows(rows), gradient[rows]
            )
            for rows in blocks.row_blocks(*weight.shape)
        ]
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
