"""Calibrate by GPTQ: round each column in turn, and let the later ones compensate for the error in the outputs.

The linears of a layer are rounded in the order in which they compute, so that each gets the texts as the linears before
it, already in int4, pass them on (quantization/compensation.py). The config check asks what a method needs each time
Snakemake starts, so torch is imported only where it is used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from int4_qat.quantization.calibration import Layer
    from int4_qat.quantization.int4 import Grid
    from int4_qat.quantization.schemes import Scheme

NEEDS = ("texts",)


def calibrate(layer: "Layer", scheme: "Scheme") -> "dict[str, Grid]":
    """Set each weight to its bf16 values from just before it was rounded; return the grids of the linears.

    Raise InputError if the inputs are not finite.
    """
    from int4_qat.quantization import compensation, int4, layer_inputs

    grids, met = {}, {}
    for names in layer_inputs.stages(layer):
        inputs = layer_inputs.observe(layer, names)
        for name, (weight, grid) in compensation.rounded_together(inputs, scheme).items():
            grids[name], met[name] = grid, weight
            layer.linears[name].weight.data = int4.fake_quantize(weight, scheme, grid=grid)
    for name, weight in met.items():
        layer.linears[name].weight.data = weight
    return grids
