"""Collect second moments of the inputs that a layer's linears get from calibration texts, for methods to use."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from int4_qat.quantization.calibration import Layer
from int4_qat.system.errors import InputError


class Inputs(NamedTuple):
    """Statistics of the inputs x that some linears share: fp32 means over all tokens."""

    linears: dict[str, torch.nn.Linear]
    moments: torch.Tensor  # (columns, columns), of x xᵀ: half the Hessian of the squared error of y = Wx
    magnitudes: torch.Tensor  # (columns), of |x|
    drift: torch.Tensor  # (columns, columns), of (x' - x) xᵀ, where x' is the input in the bf16 model


def stages(layer: Layer) -> list[tuple[str, ...]]:
    """Return the linears that the texts reach, grouped by shared input, in the order in which they compute."""
    return [names for names, _ in _shared(layer.undisturbed[0].items())]


def observe(layer: Layer, names: tuple[str, ...]) -> Inputs:
    """Return the statistics of the input that some linears share, with the layer's current weights.

    The layer computes only as far as these linears. Raise InputError if the input is not finite.
    """
    sums = None
    for x, undisturbed in zip(_given(layer, names[0]), layer.undisturbed, strict=True):
        sums = sums or Sums(x)
        sums.add(x, undisturbed[names[0]])
    linears = {name: layer.linears[name] for name in names}
    inputs = Inputs(linears, *(total / sums.tokens for total in (sums.moments, sums.magnitudes, sums.drift)))
    if not (inputs.moments.isfinite().all() and inputs.drift.isfinite().all()):
        raise InputError(f"{names[0]}: expected finite inputs of the calibration texts, found others")
    return inputs


class Sums:
    """Sums over tokens, on the device of the inputs."""

    def __init__(self, x: torch.Tensor):
        columns = x.shape[-1]
        self.moments, self.drift = (torch.zeros(columns, columns, device=x.device) for _ in range(2))
        self.magnitudes = torch.zeros(columns, device=x.device)
        self.tokens = 0

    def add(self, x: torch.Tensor, undisturbed: torch.Tensor) -> None:
        """Add the tokens of some inputs, and of the same inputs in the bf16 model, both (..., columns)."""
        tokens, others = (each.flatten(0, -2).float() for each in (x, undisturbed))
        self.moments.addmm_(tokens.T, tokens)
        self.drift.addmm_((others - tokens).T, tokens)
        self.magnitudes += tokens.abs().sum(0)
        self.tokens += len(tokens)


class Reached(Exception):
    """Signals that a layer has reached the linears whose input was asked for."""


def _given(layer: Layer, wanted: str) -> Iterator[torch.Tensor]:
    """Yield the input of a linear for each batch."""
    found: list[torch.Tensor] = []

    def stop(name: str, x: torch.Tensor) -> None:
        if name == wanted:
            found.append(x)
            raise Reached

    for call in layer.calls:
        with layer.watched(stop):
            try:
                next(layer.outputs([call]))
            except Reached:
                yield found.pop()


def _shared(given: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[tuple[str, ...], torch.Tensor]]:
    """Return each input with the names of all linears that take this very tensor."""
    found: list[tuple[list[str], torch.Tensor]] = []
    for name, x in given:
        names = next((names for names, other in found if other is x), None)
        if names is None:
            found.append(([name], x))
        else:
            names.append(name)
    return [(tuple(names), x) for names, x in found]
