"""Calibrate by AWQ: give loud input channels finer steps, by factors that a layer's norms and linears take up.

Before a weight is rounded, its columns are multiplied by s = m^a, where m is the mean |x| of each input, and the inputs
are divided by s (Lin et al. 2023, https://arxiv.org/abs/2306.00978). The power a is the one of 20 between 0 and 1 with
the least error tr((Q - W) H (Q - W)ᵀ) of the outputs, where H = E[x xᵀ]. The factors are folded into the module that
produces the inputs, so the checkpoint stays a plain one; inputs that no module can take factors for are not scaled.
Then each group's range is shortened to where its error, weighted by the inputs' squares, is least.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from int4_qat.quantization.calibration import Layer
    from int4_qat.quantization.int4 import Grid
    from int4_qat.quantization.layer_inputs import Inputs
    from int4_qat.quantization.schemes import Scheme

NEEDS = ("texts",)
POWERS = 20
SMALLEST = 1e-4  # of a mean |x|


def calibrate(layer: "Layer", scheme: "Scheme") -> "dict[str, Grid]":
    """Fold scales into a layer in place and return the grids of its linears; raise InputError as layer_inputs does."""
    from int4_qat.quantization import clipping, folds, layer_inputs

    inputs = [layer_inputs.observe(layer, names) for names in layer_inputs.stages(layer)]
    squares = {name: each.moments.diagonal() for each in inputs for name in each.linears}
    found = folds.find(layer, inputs)
    for fold in found:
        (each,) = (each for each in inputs if each.linears.keys() == fold.linears.keys())
        scales = fold.apply(best_scales(each, scheme))
        squares |= {name: each.moments.diagonal() / scales**2 for name in fold.linears}
    return {name: clipping.best_grid(layer.linears[name].weight, scheme, squares[name]) for name in squares}


def best_scales(inputs: "Inputs", scheme: "Scheme") -> "torch.Tensor":
    """Return the scales, fp32 (columns), with the least error of the outputs; with power 0 they are all 1."""
    candidates = [scales_of(inputs.magnitudes, step / POWERS) for step in range(POWERS)]
    return min(candidates, key=lambda scales: error_of(inputs, scales, scheme))


def scales_of(magnitudes: "torch.Tensor", power: float) -> "torch.Tensor":
    """Return m^a, normalized so that the geometric mean of the smallest and the largest is 1."""
    scales = magnitudes.clamp(min=SMALLEST).pow(power)
    return scales / (scales.max() * scales.min()).sqrt()


def error_of(inputs: "Inputs", scales: "torch.Tensor", scheme: "Scheme") -> float:
    """Return the mean squared error of the outputs of linears whose columns are scaled before they are rounded."""
    import torch

    from int4_qat.quantization import int4

    total = 0.0
    for linear in inputs.linears.values():
        weight = linear.weight.data.float()
        error = int4.fake_quantize(weight * scales, scheme, torch.float32) / scales - weight
        total += float(((error @ inputs.moments) * error).sum())
    return total
