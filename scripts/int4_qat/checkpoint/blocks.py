"""Split weights into blocks of rows, and merge a weight with its adapter as a checkpoint stores it."""

from collections.abc import Iterator

import torch

STORAGE_DTYPE = torch.bfloat16
CACHED_WEIGHTS = 2**18  # about a core's cache in fp32; with smaller blocks, many threads wait for the GIL


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield the rows of a (rows, columns) weight in blocks that fit a core's cache."""
    step = max(1, CACHED_WEIGHTS // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return W + s·BA as a checkpoint stores it: summed in fp32, rounded to bfloat16 once.

    The shapes are weight (rows, columns), a (r, columns), b (rows, r). This is not a single addmm, which rounds
    differently from device to device; at r = 8 a CPU and an H100 agree in every bit.
    """
    return (b.float() @ a.float()).mul_(scaling).add_(weight).to(STORAGE_DTYPE)
