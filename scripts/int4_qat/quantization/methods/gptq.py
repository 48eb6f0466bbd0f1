"""GPTQ: each column is rounded in turn, and the columns after it make up for what that does to the linear's outputs.

The linears of a layer take their turns as they compute, so that each gets what the ones before it, in int4 by then,
make of the texts (quantization/compensation.py). The check of the config asks what a method needs at each start of
Snakemake, so torch is imported where it is used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from int4_qat.quantization.calibration import Layer
    from int4_qat.quantization.int4 import Grid
    from int4_qat.quantization.schemes import Scheme

NEEDS = ("texts",)


def calibrate(layer: "Layer", scheme: "Scheme") -> "dict[str, Grid]":
    """Put what each weight was just before it was rounded in its place, in bf16; return the grids of the linears.

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
