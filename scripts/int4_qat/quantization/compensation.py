"""Round the weights of linears so that their rounding errors compensate for each other: GPTQ, column by column.

Let H = E[x xᵀ] over the inputs of a linear. Its weights W become int4 weights Q such that tr((Q - W) H (Q - W)ᵀ) is
small. Column j is rounded to its grid, and its error e moves the columns that are not rounded yet by
-e U[j, j:] / U[j, j], where U is the upper Cholesky factor of (H + damping)⁻¹ (Frantar et al. 2022,
https://arxiv.org/abs/2210.17323). Three things are done beyond that:

- A linear should give the outputs that it has in the bf16 model, where its inputs are x' instead of x, because the
  layers before it are not quantized (Li et al. 2025, GPTAQ, https://arxiv.org/abs/2504.02692). On the calibration texts
  W + W E[(x' - x) xᵀ] (H + damping)⁻¹ comes closest; going only part of the way is better on other texts.
- Groups are rounded in the order of their inputs' sizes, the largest first, and so are the columns of a group. What
  counts most is thus rounded while most columns can still compensate for it. The order in the file does not change.
- A group's grid is found when its turn comes, from its weights as they are by then, with its range shortened to where
  the error is least.

docs/recipes.md says what each of these is worth on real models.
"""

import torch

from int4_qat.checkpoint import blocks
from int4_qat.quantization import clipping, int4
from int4_qat.quantization.int4 import Grid
from int4_qat.quantization.layer_inputs import Inputs
from int4_qat.quantization.schemes import Scheme
from int4_qat.system import cuda_graphs

DAMPING = 0.05  # times the mean square of an input: the least that every direction of the inputs counts for
FOLLOWED = 0.5  # share of the way to the bf16 model's outputs that is taken


def rounded_together(inputs: Inputs, scheme: Scheme) -> dict[str, tuple[torch.Tensor, Grid]]:
    """Return the new weight and the grid of each linear; linears that share an input are rounded as one weight."""
    weights = [linear.weight.data for linear in inputs.linears.values()]
    dtype, rows = weights[0].dtype, [len(weight) for weight in weights]
    inverse = inverse_of(inputs.moments)
    target = steered(torch.cat(weights).float(), inputs.drift, inverse)
    compensated, grid = compensate(target, inverse, order_of(inputs.moments.diagonal(), scheme.group_size), scheme)
    grids = map(Grid, grid.scale.split(rows, 1), grid.zero_point.split(rows, 1))
    return dict(zip(inputs.linears, zip(compensated.to(dtype).split(rows), grids, strict=True), strict=True))


def inverse_of(moments: torch.Tensor) -> torch.Tensor:
    """Return (H + damping)⁻¹ in fp64; if all inputs are zero, the diagonal is 1."""
    hessian = moments.double()
    diagonal = hessian.diagonal()
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1
    return torch.cholesky_inverse(torch.linalg.cholesky(hessian))


def steered(weight: torch.Tensor, drift: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Return weights whose outputs on the actual inputs are closer to the outputs of the bf16 model."""
    return weight + FOLLOWED * ((weight @ drift).double() @ inverse).float()


def compensate(
    weight: torch.Tensor, inverse: torch.Tensor, order: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, Grid]:
    """Return a weight in bf16 and a grid such that rounding the weight to the grid gives GPTQ's result.

    `weight` is fp32 (rows, columns), `inverse` fp64 (columns, columns); `order` holds the columns in the order in which
    they are rounded, group by group. An input that is always zero changes nothing.
    """
    size, waiting = scheme.group_size, weight[:, order]
    factor = torch.linalg.cholesky(inverse[order][:, order], upper=True).float()
    compensated = torch.empty_like(weight, dtype=blocks.STORAGE_DTYPE)
    grids: dict[int, Grid] = {}
    for start in range(0, weight.shape[1], size):
        stop = start + size
        group, of_group = waiting[:, start:stop], factor[start:stop, start:stop]
        grid = clipping.best_grid(group, scheme, of_group.diagonal() ** -2)
        grids[int(order[start]) // size] = grid
        compensated[:, order[start:stop]], errors = cuda_graphs.replayed(round_group, group, of_group, *grid)
        waiting[:, stop:] -= errors @ factor[start:stop, stop:]
    scales, zero_points = zip(*(grids[number] for number in range(len(grids))), strict=True)
    return compensated, Grid(torch.cat(scales), torch.cat(zero_points))


def round_group(
    group: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the columns of a group in bf16, each as it was when its turn came, and the errors for later groups.

    `group`, fp32 (rows, size), is overwritten. `factor`, fp32 (size, size), is the group's part of U; `scale` and
    `zero_point` belong to its grid.
    """
    nearest = int4.nearest_on(Grid(scale, zero_point))
    met, errors = torch.empty_like(group, dtype=blocks.STORAGE_DTYPE), torch.empty_like(group)
    for column in range(group.shape[1]):
        met[:, column] = group[:, column]  # in bf16, because the export rounds what is stored
        errors[:, column] = (group[:, column] - nearest(met[:, column].float())) / factor[column, column]
        group[:, column + 1 :].addr_(errors[:, column], factor[column, column + 1 :], alpha=-1)
    return met, errors


def order_of(sizes: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return the columns in rounding order, group by group; `sizes` (columns) are the inputs' mean squares."""
    groups = sizes.view(-1, group_size)
    columns = groups.argsort(dim=-1, descending=True, stable=True)
    columns += torch.arange(0, sizes.numel(), group_size, device=sizes.device)[:, None]
    return columns[groups.sum(-1).argsort(descending=True, stable=True)].flatten()
