"""Compare a variant's predictions for the texts with those of the base model and of its own bf16 weights.

The bf16 models have already read the texts (see hidden_states); the figures are those of divergence.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from int4_qat.checkpoint import architecture, heads
from int4_qat.checkpoint.heads import Head, Reading
from int4_qat.evaluation import divergence, hidden_states
from int4_qat.evaluation.hidden_states import Recorded
from int4_qat.system.errors import InputError


class Variant(NamedTuple):
    """A checkpoint that is compared, and the head that computes its logits."""

    folder: Path
    head: Head
    digest: str  # of the head
    device: str


class Reader(NamedTuple):
    """A model in bf16 that has read the texts: its states by text, and the head that computes logits from them."""

    texts: dict[str, Recorded]
    head: Head


def reader(folder: Path, texts: dict[str, Recorded], variant: Variant) -> Reader:
    """Return a model with which a variant is compared; its head is the variant's, unless it was recorded with another.

    Raise InputError if that other head has another vocabulary.
    """
    recorded = next(iter(texts.values()))
    if recorded.head == variant.digest:
        return Reader(texts, variant.head)
    head = heads.load(folder, architecture.DTYPES[recorded.protocol["dtype"]], variant.device)
    if head.vocabulary != variant.head.vocabulary:
        expected = f"the vocabulary of {folder}, {head.vocabulary} tokens"
        raise InputError(f"{variant.folder}: expected {expected}, found {variant.head.vocabulary}")
    return Reader(texts, head)


def in_bf16(own: Reader, base: Reader, device: str) -> dict[str, list[dict]]:
    """Return, by text, the rows of a variant in bf16, which has already read the texts."""
    found = {}
    for name, text in base.texts.items():
        pairs = recorded(own, base, name, device)
        readings = ((ours, reference, None) for ours, reference in pairs)
        found[name] = rows(text, readings, device)
    return found


def quantized(model: PreTrainedModel, head: Head, own: Reader, base: Reader, device: str) -> dict[str, list[dict]]:
    """Return, by text, the rows of a quantized variant, which reads the texts now."""
    found = {}
    for name, text in base.texts.items():
        pairs = zip(states(model, text), recorded(own, base, name, device), strict=True)
        readings = ((Reading(hidden, head), reference, ours) for hidden, (ours, reference) in pairs)
        found[name] = rows(text, readings, device)
    return found


def rows(text: Recorded, readings: Iterator[tuple[Reading, Reading, Reading | None]], device: str) -> list[dict]:
    """Return a row for each window of a text, with the sums over its tokens.

    For each window, readings has those of the variant, of the base and, if the variant is quantized, of its own bf16
    weights.
    """
    windows = tqdm(text.windows, desc=text.path.stem, unit=" windows", mininterval=1)
    sums = [
        divergence.compare(*each, torch.tensor(window, device=device))
        for window, each in zip(windows, readings, strict=True)
    ]
    return [
        {"text": text.path.stem, "window": index, "tokens": len(text.windows[index]) - 1}
        | each
        | {"same_top1": int(each["same_top1"])}
        for index, each in enumerate(divergence.on_host(sums))
    ]


def recorded(own: Reader, base: Reader, name: str, device: str) -> Iterator[tuple[Reading, Reading]]:
    """Yield the readings of each window of a text by a variant's own weights in bf16 and by the base."""
    of_own = None if own is base else hidden_states.read(own.texts[name], device)
    for hidden in hidden_states.read(base.texts[name], device):
        reference = Reading(hidden, base.head)
        yield (reference if of_own is None else Reading(next(of_own), own.head)), reference


def states(model: PreTrainedModel, text: Recorded) -> Iterator[torch.Tensor]:
    """Yield a model's last hidden states (tokens, width) of each window of a text."""
    for batch in divergence.batches(text.windows):
        yield from divergence.last_hidden_states(model, batch)
