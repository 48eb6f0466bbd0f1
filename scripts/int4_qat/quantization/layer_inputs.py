"""What the linears of a layer are given over the calibration texts: second moments, which a method goes by."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from int4_qat.quantization.calibration import Layer
from int4_qat.system.errors import InputError


class Inputs(NamedTuple):
    """The inputs x that some linears share, over all tokens."""

    linears: dict[str, torch.nn.Linear]
    moments: torch.Tensor  # fp32 (columns, columns), the mean of x xᵀ: half the Hessian of the squared error of y = Wx
    magnitudes: torch.Tensor  # fp32 (columns), the mean of |x|


def observe(layer: Layer) -> list[Inputs]:
    """Return the inputs of a layer's linears, once for those that are given the same; the layer computes as it is.

    A linear that no token reaches, as an expert may be, is not among them. Raise InputError if an input is not finite.
    """
    sums: dict[tuple[str, ...], Sums] = {}
    for given in _by_batch(layer):
        for names, x in _shared(given):
            sums.setdefault(names, Sums(x)).add(x)
    found = [
        Inputs(
            {name: layer.linears[name] for name in names},
            of_names.moments / of_names.tokens,
            of_names.magnitudes / of_names.tokens,
        )
        for names, of_names in sums.items()
    ]
    for inputs in found:
        if not inputs.moments.isfinite().all():
            raise InputError(
                f"{next(iter(inputs.linears))}: expected finite inputs of the calibration texts, found others"
            )
    return found


class Sums:
    """Sums over tokens, on the device of the inputs."""

    def __init__(self, x: torch.Tensor):
        columns = x.shape[-1]
        self.moments = torch.zeros(columns, columns, device=x.device)
        self.magnitudes = torch.zeros(columns, device=x.device)
        self.tokens = 0

    def add(self, x: torch.Tensor) -> None:
        """Add the tokens of some inputs (..., columns)."""
        tokens = x.flatten(0, -2).float()
        self.moments.addmm_(tokens.T, tokens)
        self.magnitudes += tokens.abs().sum(0)
        self.tokens += len(tokens)


def _by_batch(layer: Layer) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Yield, for each batch, the linears in the order in which they are called, and their inputs."""
    given: list[tuple[str, torch.Tensor]] = []
    hooks = [
        linear.register_forward_pre_hook(lambda _, arguments, name=name: given.append((name, arguments[0])))
        for name, linear in layer.linears.items()
    ]
    try:
        for _ in layer.outputs():
            yield given
            given.clear()
    finally:
        for hook in hooks:
            hook.remove()


def _shared(given: list[tuple[str, torch.Tensor]]) -> list[tuple[tuple[str, ...], torch.Tensor]]:
    """Return each input with the names of all linears that are given the very same tensor."""
    found: list[tuple[list[str], torch.Tensor]] = []
    for name, x in given:
        names = next((names for names, other in found if other is x), None)
        if names is None:
            found.append(([name], x))
        else:
            names.append(name)
    return [(tuple(names), x) for names, x in found]
