"""Fake-quantize in training: the linears below LoRA compute with weights rounded as the export rounds them.

The deployed weight is Q(W + s·BA): the adapter is merged, then the sum is quantized. The targets of training are:

    base         y = Q(W)x + s·BAx       as in unsloth from 2026.10.8 on; W is frozen, so Q(W) is computed once
    base+lora_a  y = Q(W)x + s·B·Q(A)x   as in unsloth up to 2026.10.7, which fake-quantizes A too
    merged       y = Q(W + s·BA)x        the deployed weight itself

Q rounds to the weight's own grid, or to the one that a calibrated checkpoint has for it; A is always on its own grid.
The gradient passes straight through each rounding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners import lora

from int4_qat.quantization import int4, linears
from int4_qat.quantization.int4 import AnyGrid, MovedGrid
from int4_qat.quantization.record import GIVEN, LEARNED, OWN
from int4_qat.quantization.schemes import Scheme
from int4_qat.system.errors import InputError
from int4_qat.training import learned_grid, merged_linear
from int4_qat.training.learned_grid import LearnedGrid


def lora_linears(model: PeftModel) -> dict[str, lora.Linear]:
    """Return the linears that LoRA trains, by their names in the base model."""
    modules = model.get_base_model().named_modules()
    return {name: module for name, module in modules if isinstance(module, lora.Linear)}


def fake_quantize_linears(
    model: PeftModel,
    target: str,
    scheme: Scheme,
    ignore: Sequence[str] = (),
    given: Mapping[str, AnyGrid] | None = None,
    learned: bool = False,
    device: str | None = None,
) -> list[str]:
    """Let every linear below LoRA train on int4 weights, in place; return the names of those linears.

    A linear that `ignore` names is not changed, as in the export. Grids are given for all linears or for none; without
    them each linear is on its own grid. With target `merged` grids can be learned: they start at the given grids, or at
    the grids of the frozen weights. Weights are quantized on `device`, one at a time, or else where they are, and their
    grids stay there. Raise InputError if there are no such linears, if one has no grid though others do, or if the
    group size does not divide the input features of one: a training that only looks like QAT is worse than none.
    """
    layers = {name: layer for name, layer in lora_linears(model).items() if not linears.ignored(name, ignore)}
    if not layers:
        raise InputError("quantization: expected linears with a LoRA adapter to fake-quantize, found none")
    for name, layer in layers.items():
        inputs = layer.base_layer.in_features
        if inputs % scheme.group_size:
            raise InputError(
                f"group_size: expected a divisor of the {inputs} inputs of {name}, found {scheme.group_size}"
            )
        frozen = layer.base_layer.weight
        weight = frozen.detach().to(device)
        grid = grid_of(name, weight.device, given) if given else None
        if target == "merged":
            start = LearnedGrid(grid or int4.quantize(weight, scheme).grid, scheme) if learned else None
            model.get_base_model().set_submodule(name, MergedInt4Linear(layer, scheme, start or grid))
            continue
        frozen.data = int4.fake_quantize(weight, scheme, grid=grid).to(frozen.device)
        if target == "base+lora_a":
            layer.lora_A.update({adapter: Int4Linear(a, scheme) for adapter, a in layer.lora_A.items()})
    if learned:
        linear = model.get_base_model().get_submodule
        learned_grid.attach(model.get_base_model(), {name: linear(name).grid for name in layers})
    return list(layers)


def grid_of(name: str, device: torch.device, given: Mapping[str, AnyGrid]) -> AnyGrid:
    """Return the grid of a linear, on a device; raise InputError if it has none."""
    if name not in given:
        raise InputError(f"start: expected a grid for each linear that is trained in int4, found none for {name}")
    return given[name].to(device)


def learned_grids(model: PeftModel) -> dict[str, MovedGrid]:
    """Return the learned grids as they are stored, by the names of linears; empty if none was learned."""
    return {name: grid.stored() for name, grid in learned_grid.of_model(model.get_base_model()).items()}


def record(model: PeftModel, recipe: Any, start: str | None = None) -> dict:
    """Return how the linears below LoRA were trained, and for each whether it was in int4; exports must match it.

    `start` is the method that calibrated the model on whose grids the training began, or None.
    """
    in_int4 = {
        name: recipe.scheme is not None and not linears.ignored(name, recipe.ignore) for name in lora_linears(model)
    }
    return {
        "scheme": recipe.scheme,
        "target": recipe.qat_target if recipe.scheme else None,
        "grids": grids_seen(recipe, start),
        "ignore": recipe.ignore,
        "dtype": recipe.dtype,
        "linears": in_int4,
    }


def grids_seen(recipe: Any, start: str | None) -> str | None:
    """Return the word for the grids that a training saw, or None without a quantization."""
    if recipe.scheme is None:
        return None
    if recipe.grid_learning_rate:
        return LEARNED
    return GIVEN if start else OWN


class Int4Linear(torch.nn.Linear):
    """A linear that takes over another one's parameters but computes Q(W)x, with the gradient of Wx for W."""

    def __init__(self, layer: torch.nn.Linear, scheme: Scheme):
        torch.nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)
        self.scheme = scheme

    @torch.compiler.disable  # a compiled layer would not round as this does
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.detach()
        straight_through = int4.fake_quantize(weight, self.scheme) + (self.weight - weight)
        return torch.nn.functional.linear(x, straight_through, self.bias)


class MergedInt4Linear(lora.Linear):
    """A linear that takes over the parameters of peft's linear with LoRA but computes Q(W + s·BA)x."""

    def __init__(self, layer: lora.Linear, scheme: Scheme, grid: AnyGrid | LearnedGrid | None = None):
        torch.nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)
        (self.adapter,) = layer.active_adapters
        if not isinstance(layer.lora_dropout[self.adapter], torch.nn.Identity):
            raise InputError("lora_dropout: expected 0 with qat_target merged, since a merged weight has no dropout")
        self.scheme = scheme
        # Not registered as a part of this module, since peft takes all parts of its own layers for the adapter's.
        self.__dict__["grid"] = grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.disable_adapters:
            return self.base_layer(x)
        a, b = self.lora_A[self.adapter].weight, self.lora_B[self.adapter].weight
        weight, scaling = self.base_layer.weight, self.scaling[self.adapter]
        y = merged_linear.apply(x, weight, a, b, scaling, self.scheme, self.grid)
        return y if self.base_layer.bias is None else y + self.base_layer.bias
