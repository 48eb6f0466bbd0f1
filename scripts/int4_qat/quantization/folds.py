"""Fold factors of linears into the module that produces their inputs, without changing what the layer computes.

The columns of the linears are multiplied by s. Their inputs become x / s, because the gain of a norm, or the rows of a
linear, are divided by s. Which module can take up the factors is found by trial: factors of 2 are folded in, and the
layer's output must not change.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from int4_qat.checkpoint.blocks import STORAGE_DTYPE
from int4_qat.quantization import batches
from int4_qat.quantization.calibration import Layer
from int4_qat.quantization.layer_inputs import Inputs

TOLERANCE = 0.1  # rounding to bfloat16 gives a hundredth, a wrong fold one half or more
SMALLEST = 1e-9


class Fold(NamedTuple):
    """Linears with the same inputs, and the norm or linear that is divided by the factors they are multiplied by."""

    linears: dict[str, torch.nn.Linear]
    source: torch.nn.Module

    def apply(self, scales: torch.Tensor) -> torch.Tensor:
        """Multiply the columns of the linears by scales, fp32 (columns), and divide the source by them.

        Return the scales that were applied. They can differ from the given ones, because all weights stay bfloat16
        values and the quotient of a norm's gain is rounded to one.
        """
        if isinstance(self.source, torch.nn.Linear):
            put(self.source.weight, self.source.weight.float() / scales[:, None])
        else:
            scales = divide_gain(self.source, scales)
        if getattr(self.source, "bias", None) is not None:
            put(self.source.bias, self.source.bias.float() / scales)
        for linear in self.linears.values():
            put(linear.weight, linear.weight.float() * scales)
        return scales


def put(parameter: torch.nn.Parameter, values: torch.Tensor) -> None:
    """Give a parameter new values, rounded to bfloat16."""
    parameter.data = values.to(STORAGE_DTYPE).to(parameter.dtype)


def divide_gain(norm: torch.nn.Module, scales: torch.Tensor) -> torch.Tensor:
    """Divide the gain of a norm and return the divisors that were applied; keep a gain that is or would become zero."""
    offset, before = gain_offset(norm), norm.weight.data.float()
    after = (before + offset).div(scales).sub(offset).to(STORAGE_DTYPE).float()
    after = torch.where((after + offset == 0) | (before + offset == 0), before, after)
    put(norm.weight, after)
    return torch.where(after == before, 1, (before + offset) / (after + offset))


def gain_offset(norm: torch.nn.Module) -> int:
    """Return 1 for a norm whose gain is 1 + w, such as Gemma's, and 0 for one whose gain is w."""
    weight, bias = norm.weight.data, getattr(norm, "bias", None)
    probe = torch.linspace(1, 2, weight.numel(), dtype=weight.dtype, device=weight.device)[None]
    norm.weight.data = torch.zeros_like(weight)
    without = norm(probe) - (0 if bias is None else bias)
    norm.weight.data = weight
    return int(bool(without.any()))


def find(layer: Layer, inputs: list[Inputs]) -> list[Fold]:
    """Return the folds that leave the layer's output unchanged, at most one for each of the inputs."""
    makers, found = makers_of(layer), []
    for each in inputs:
        first = next(iter(each.linears))
        linears = [linear for name, linear in layer.linears.items() if name not in each.linears]
        norms = [makers[first]] if first in makers else []
        sources = [source for source in (*norms, *linears) if outputs_of(source) == len(each.moments)]
        folds = (Fold(each.linears, source) for source in sources)
        found.append(next((fold for fold in folds if leaves_output(layer, fold)), None))
    return [fold for fold in found if fold]


def outputs_of(module: torch.nn.Module) -> int:
    """Return the number of output features of a norm or a linear."""
    return module.weight.shape[0]


def makers_of(layer: Layer) -> dict[str, torch.nn.Module]:
    """Return, by the name of the linear, the norm whose output is its input, for the linears that have such a norm."""
    norms = [module for module in layer.module.modules() if is_norm(module)]
    made: list[tuple[torch.Tensor, torch.nn.Module]] = []
    given: dict[str, torch.Tensor] = {}
    hooks = [norm.register_forward_hook(lambda module, _, output: made.append((output, module))) for norm in norms]
    with layer.watched(given.__setitem__):
        next(layer.outputs())
    for hook in hooks:
        hook.remove()
    return {name: norm for name, x in given.items() for output, norm in made if output is x}


def is_norm(module: torch.nn.Module) -> bool:
    """Return whether a module has one gain per feature and no submodules."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.nn.Parameter) and weight.ndim == 1 and not any(module.children())


def leaves_output(layer: Layer, fold: Fold) -> bool:
    """Return whether the layer's output is unchanged with some factors folded in; its weights are restored.

    The change in the output is compared with the change that the factors cause if no module takes them up.
    """
    factors = torch.ones(outputs_of(fold.source), device=fold.source.weight.device)
    factors[::2] = 2
    before = states_of(next(layer.outputs()))
    folded, half_folded = (states_of(output) - before for output in probed(layer, fold, factors))
    size = (
        before.square().mean(0).sqrt().clamp(min=SMALLEST)
    )  # in some models a few channels are a thousand times the others
    return bool((folded / size).norm() < TOLERANCE * (half_folded / size).norm())


def probed(layer: Layer, fold: Fold, factors: torch.Tensor) -> Iterator[Any]:
    """Yield the layer's output for its first batch with the factors folded in, then with the source as it was."""
    own, theirs = [*fold.source.parameters()], [linear.weight for linear in fold.linears.values()]
    kept = {parameter: parameter.data for parameter in (*own, *theirs)}
    try:
        fold.apply(factors)
        yield next(layer.outputs())
        for parameter in own:
            parameter.data = kept[parameter]
        yield next(layer.outputs())
    finally:
        for parameter, values in kept.items():
            parameter.data = values


def states_of(output: Any) -> torch.Tensor:
    """Return the hidden states of a layer's output, fp32 (tokens, width)."""
    return batches.hidden_of(output).float().flatten(0, -2)
