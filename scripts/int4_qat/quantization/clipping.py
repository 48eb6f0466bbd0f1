"""Find the grid of each group, its range shortened to where the error, weighted by column, is least."""

import torch

from int4_qat.quantization import int4
from int4_qat.quantization.int4 import Grid
from int4_qat.quantization.schemes import Scheme

SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)  # of a group's range


def best_grid(weight: torch.Tensor, scheme: Scheme, importance: torch.Tensor) -> Grid:
    """Return the grid of a (rows, columns) weight; `importance`, fp32 (columns), weights the squared errors."""
    rows, size = len(weight), scheme.group_size
    groups = weight.float().view(rows, -1, size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = least = None
    for share in SHARES:
        grid = int4.quantize(groups.clamp(low * share, high * share).view(rows, -1), scheme).grid
        errors = int4.fake_quantize(weight.float(), scheme, grid=grid).sub_(weight).square_().mul_(importance)
        error = errors.view(rows, -1, size).sum(-1).t()
        if least is None:
            best, least = grid, error
        else:
            better = error < least
            best = Grid(*(torch.where(better, new, old) for new, old in zip(grid, best, strict=True)))
            least = torch.where(better, error, least)
    return best
