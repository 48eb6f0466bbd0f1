"""GPTQ: each column is rounded in turn, and the columns after it take over what that does to the linear's outputs.

With H = E[x xᵀ] of the inputs of a linear, its weights W are to become int4 so that tr((Q - W) H (Q - W)ᵀ) is small.
Column j is rounded to its grid, and its error e moves the columns that are still open by -e U[j, j:] / U[j, j], where
U is the upper Cholesky factor of (H + damping)⁻¹ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323).

Groups go in the order of their inputs' sizes, the largest first, and so do the columns of a group, so that what is most
heard is rounded while most columns can still make up for it; the groups themselves stay what they are in the file
(group-aware reordering, as in GPTQModel and llm-compressor). A group's grid is found when its turn comes, of its
weights as they are by then.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from int4_qat.quantization.calibration import Layer
    from int4_qat.quantization.int4 import Grid
    from int4_qat.quantization.schemes import Scheme

NEEDS = ("texts",)
DAMPING = 0.01  # of the mean square of an input: what every direction of the inputs counts for at least


def calibrate(layer: "Layer", scheme: "Scheme") -> "dict[str, Grid]":
    """Put what each weight was just before it was rounded in its place, in bf16; return the grids of the linears.

    Raise InputError if the inputs are not finite.
    """
    import torch

    from int4_qat.quantization import int4, layer_inputs

    grids = {}
    for inputs in layer_inputs.observe(layer):
        weights = [linear.weight for linear in inputs.linears.values()]
        together = torch.cat([weight.float() for weight in weights])
        compensated, grid = compensate(together, inputs.moments, scheme)
        rows = [len(weight) for weight in weights]
        parts = zip(compensated.split(rows), grid.scale.split(rows, 1), grid.zero_point.split(rows, 1), strict=True)
        for (name, linear), (values, *of_groups) in zip(inputs.linears.items(), parts, strict=True):
            linear.weight.data = values.to(linear.weight.dtype)
            grids[name] = int4.Grid(*(part.contiguous() for part in of_groups))
    return grids


def compensate(
    weight: "torch.Tensor", moments: "torch.Tensor", scheme: "Scheme", damping: float = DAMPING
) -> "tuple[torch.Tensor, Grid]":
    """Return a weight in bf16 and a grid, on which its nearest values are those of GPTQ.

    weight fp32 (rows, columns), moments fp32 (columns, columns). An input that is always zero changes nothing.
    """
    import torch

    from int4_qat.checkpoint import blocks
    from int4_qat.quantization import int4

    size, order = scheme.group_size, order_of(moments.diagonal(), scheme.group_size)
    factor, waiting = factor_of(moments, damping, order), weight[:, order]
    compensated = torch.empty_like(weight, dtype=blocks.STORAGE_DTYPE)
    grids: dict[int, int4.Grid] = {}
    for start in range(0, weight.shape[1], size):
        stop = start + size
        group, of_group = waiting[:, start:stop], factor[start:stop, start:stop]
        grid = grids[int(order[start]) // size] = int4.quantize(group, scheme).grid
        compensated[:, order[start:stop]], errors = round_group(group, of_group, grid)
        waiting[:, stop:] -= errors @ factor[start:stop, stop:]
    scales, zero_points = zip(*(grids[number] for number in range(len(grids))), strict=True)
    return compensated, int4.Grid(torch.cat(scales), torch.cat(zero_points))


def round_group(group: "torch.Tensor", factor: "torch.Tensor", grid: "Grid") -> "tuple[torch.Tensor, torch.Tensor]":
    """Return the columns of a group in bf16, each as it was when its turn came, and the errors for later groups.

    group fp32 (rows, size) is used up; factor fp32 (size, size) is its part of U.
    """
    import torch

    from int4_qat.checkpoint import blocks
    from int4_qat.quantization import int4

    nearest = int4.nearest_on(grid)
    met, errors = torch.empty_like(group, dtype=blocks.STORAGE_DTYPE), torch.empty_like(group)
    for column, of_column in enumerate(factor):
        met[:, column] = group[:, column]  # in bf16: the export rounds what is stored
        errors[:, column] = (group[:, column] - nearest(met[:, column].float())) / of_column[column]
        group[:, column + 1 :].addr_(errors[:, column], of_column[column + 1 :], alpha=-1)
    return met, errors


def order_of(sizes: "torch.Tensor", group_size: int) -> "torch.Tensor":
    """Return the columns in the order of their turns, group by group; sizes (columns) are the inputs' mean squares."""
    import torch

    groups = sizes.view(-1, group_size)
    columns = groups.argsort(dim=-1, descending=True, stable=True)
    columns += torch.arange(0, sizes.numel(), group_size, device=sizes.device)[:, None]
    return columns[groups.sum(-1).argsort(descending=True, stable=True)].flatten()


def factor_of(moments: "torch.Tensor", damping: float, order: "torch.Tensor") -> "torch.Tensor":
    """Return U in fp32, of columns in an order: upper, with UᵀU = (H + damping)⁻¹."""
    import torch

    hessian = moments.double()[order][:, order]
    diagonal = hessian.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1  # no input at all
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True).float()
