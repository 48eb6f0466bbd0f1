"""Store a model's predictions for texts as its last hidden states, in one safetensors file per text.

    tokens   int64 (tokens): the ids of all windows, one after the other
    lengths  int64 (windows)
    hidden   (tokens, width) in the dtype of the model: the states from which its head computes logits

The header's metadata holds the protocol and the digest of the head.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import PreTrainedModel

from int4_qat.evaluation import divergence
from int4_qat.system import files
from int4_qat.system.errors import InputError

SUFFIX = ".safetensors"


class Recorded(NamedTuple):
    """A file of hidden states, without the states themselves."""

    path: Path
    protocol: dict
    head: str  # its digest
    windows: list[list[int]]  # token ids


def record(model: PreTrainedModel, text: Recorded, path: Path) -> None:
    """Write a model's last hidden states of a text, with its tokens, protocol and head digest, to a path."""
    batches = tqdm(divergence.batches(text.windows), desc=text.path.stem, unit=" batches", mininterval=1)
    states = [divergence.last_hidden_states(model, batch).flatten(0, 1).cpu() for batch in batches]
    tensors = {
        "tokens": torch.tensor([token for window in text.windows for token in window]),
        "lengths": torch.tensor([len(window) for window in text.windows]),
        "hidden": torch.cat(states),
    }
    metadata = {"protocol": json.dumps(text.protocol, sort_keys=True), "head": text.head}
    with files.whole(path) as unfinished:
        save_file(tensors, unfinished, metadata)


def recorded(folder: Path) -> dict[str, Recorded]:
    """Return a folder's files by the sorted names of their texts.

    Raise InputError if there are none, or if one is broken.
    """
    found = {path.stem: describe(path) for path in folder.glob(f"*{SUFFIX}")}
    if not found:
        raise InputError(f"{folder}: expected the hidden states of texts, found none")
    return dict(sorted(found.items()))


def describe(path: Path) -> Recorded:
    """Return what a file holds apart from its states; raise InputError if it cannot be read."""
    try:
        with safe_open(path, "pt") as stored:
            metadata, tokens, lengths = stored.metadata(), stored.get_tensor("tokens"), stored.get_tensor("lengths")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: the hidden states cannot be read ({str(error).splitlines()[0]})") from None
    windows = [part.tolist() for part in tokens.split(lengths.tolist())]
    return Recorded(path, json.loads(metadata["protocol"]), metadata["head"], windows)


def read(found: Recorded, device: str) -> Iterator[torch.Tensor]:
    """Yield the states (tokens, width) of each window."""
    start = 0
    with safe_open(found.path, "pt") as stored:
        hidden = stored.get_slice("hidden")
        for window in found.windows:
            yield hidden[start : start + len(window)].to(device)
            start += len(window)


def refuse_differences(base: dict[str, Recorded], own: dict[str, Recorded]) -> None:
    """Raise InputError unless two folders hold the same texts, with the same protocol and the same tokens."""
    for name in sorted(base.keys() | own.keys()):
        if name not in base or name not in own:
            there, missing = (base, own) if name in base else (own, base)
            folder = next(iter(missing.values())).path.parent
            raise InputError(f"{folder}: expected the text of {there[name].path}, found none")
        expected, found = base[name], own[name]
        if found.protocol != expected.protocol or found.windows != expected.windows:
            wanted = f"the tokens and the protocol of {expected.path}"
            raise InputError(f"{found.path}: expected {wanted}, found others; record both again")
