"""What a model says of some texts, kept as its last hidden states: a file a text, in safetensors.

    tokens   int64 (tokens): the ids of all windows, one after the other
    lengths  int64 (windows)
    hidden   (tokens, width) in the dtype of the model: what its head makes logits of

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


class Window(NamedTuple):
    """Some tokens that were read together, and what the model made of them."""

    tokens: torch.Tensor  # int64 (tokens)
    hidden: torch.Tensor  # (tokens, width)


def record(model: PreTrainedModel, windows: list[list[int]], protocol: dict, path: Path) -> None:
    """Write the last hidden states of a text's windows."""
    states = [
        states.cpu()
        for batch in tqdm(list(divergence.batches(windows)), desc=path.stem, mininterval=1)
        for states in divergence.last_hidden_states(model, batch)
    ]
    tensors = {
        "tokens": torch.tensor([token for window in windows for token in window]),
        "lengths": torch.tensor([len(window) for window in windows]),
        "hidden": torch.cat(states),
    }
    metadata = {"protocol": json.dumps(protocol, sort_keys=True), "head": divergence.head_digest(model)}
    with files.whole(path) as unfinished:
        save_file(tensors, unfinished, metadata)


def paths_of(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by the names of their texts; raise InputError if there are none."""
    found = {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if not found:
        raise InputError(f"{folder}: expected the hidden states of texts, found none")
    return found


def metadata_of(path: Path) -> dict:
    """Return the protocol of a file and the digest of the head; raise InputError if it is not whole."""
    try:
        with safe_open(path, "pt") as stored:
            found = stored.metadata()
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: the hidden states cannot be read ({str(error).splitlines()[0]})") from None
    return {"protocol": json.loads(found["protocol"]), "head": found["head"]}


def read(path: Path) -> Iterator[Window]:
    """Yield the windows of a file."""
    with safe_open(path, "pt") as stored:
        tokens, lengths, hidden = stored.get_tensor("tokens"), stored.get_tensor("lengths"), stored.get_slice("hidden")
        start = 0
        for length in lengths.tolist():
            yield Window(tokens[start : start + length], hidden[start : start + length])
            start += length
