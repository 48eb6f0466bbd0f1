"""Cut a layer's call with all texts at once into calls with batches of them, and join the outputs."""

from collections.abc import MutableMapping
from typing import Any

import torch

Call = tuple[tuple, dict]  # positional and named arguments


class Cut:
    """Cuts calls with (texts, length) tokens into batches, and keeps for each what layers pass on in a mapping.

    A tensor is cut if its first dimension has the texts, and another one their tokens.
    """

    def __init__(self, shape: tuple[int, int], size: int):
        texts, self.length = shape
        self.texts = texts
        self.parts = [slice(start, min(start + size, texts)) for start in range(0, texts, size)]
        self._handed_on: dict[int, tuple[MutableMapping, list[MutableMapping]]] = {}

    def calls(self, arguments: tuple, named: dict) -> list[Call]:
        """Return one call per batch, which together replace a call with all texts."""
        numbers = range(len(self.parts))
        return [(self._part(arguments, number), self._part(named, number)) for number in numbers]

    def _part(self, value: Any, number: int) -> Any:
        if isinstance(value, torch.Tensor):
            of_texts = value.ndim > 1 and len(value) == self.texts and self.length in value.shape[1:]
            return value[self.parts[number]] if of_texts else value
        if type(value) in (tuple, list):
            return type(value)(self._part(each, number) for each in value)
        if type(value) is dict:
            return {key: self._part(each, number) for key, each in value.items()}
        if isinstance(value, MutableMapping):  # Gemma 4's keys and values, which later layers share
            _, own = self._handed_on.setdefault(id(value), (value, [type(value)() for _ in self.parts]))
            return own[number]
        return value


def join(outputs: list[Any]) -> Any:
    """Return what a layer would have returned for all texts; in tuples, only the hidden states (first) are joined."""
    if isinstance(outputs[0], tuple):
        return (torch.cat([output[0] for output in outputs]), *outputs[0][1:])
    return torch.cat(outputs)


def hidden_of(output: Any) -> torch.Tensor:
    """Return the hidden states in a layer's output."""
    return output[0] if isinstance(output, tuple) else output
