"""Compute logits from last hidden states by a model's head, with the caps and scales of the model's own code.

The model's own forward pass computes the logits while its body returns given states, so that no cap (Gemma 2's), no
scale (Cohere's) and no cast is forgotten. A checkpoint's head can therefore be loaded without its body.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from int4_qat.checkpoint import architecture, text_model
from int4_qat.system.errors import InputError

HASHED_BYTES = 2**26  # hashed at once
BLOCK_BYTES = 2**28  # of one block of logits in fp32


class Head:
    """A model's head; the rest of the model may be without weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.vocabulary = len(model.get_output_embeddings().weight)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (tokens, vocabulary) of last hidden states (tokens, width), in the model's dtype."""
        tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with answering(self.model.base_model, hidden):
            return self.model(input_ids=tokens, use_cache=False).logits[0]

    def digest(self) -> str:
        """Return a SHA-256 of the weights as loaded; heads with equal digests compute equal logits from a state."""
        total = hashlib.sha256()
        for name, parameter in sorted(self.model.get_output_embeddings().named_parameters()):
            total.update(f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\0".encode())
            rows = max(1, HASHED_BYTES // (parameter.itemsize * math.prod(parameter.shape[1:])))
            for block in parameter.detach().split(rows):
                total.update(block.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return total.hexdigest()


class Reading(NamedTuple):
    """A model's last hidden states (tokens, width) for some tokens, and the head that computes logits from them."""

    hidden: torch.Tensor
    head: Head


def blocks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Yield the blocks of tokens whose logits are held at once."""
    step = max(1, BLOCK_BYTES // (4 * vocabulary))
    for start in range(0, tokens, step):
        yield slice(start, min(start + step, tokens))


class Answer(BaseModelOutputWithPast):
    """A body's output: its states. Other outputs that some models pass on, such as the states of pictures, are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def answering(body: torch.nn.Module, hidden: torch.Tensor) -> Iterator[None]:
    """Make a model's body return the given last hidden states (tokens, width), whatever its arguments, and no more.

    Its hooks do not run: those of FSDP2 would take the call for one that needs the weights of the layers.
    """

    def answer(*_, **__) -> Answer:
        return Answer(last_hidden_state=hidden[None])

    replaced = {"forward": answer, "_forward_hooks": {}, "_forward_pre_hooks": {}}
    before = {name: vars(body)[name] for name in replaced if name in vars(body)}
    vars(body).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(body)[name]
        vars(body).update(before)


def load(folder: Path, dtype: torch.dtype, device: str) -> Head:
    """Return the head of a checkpoint; the rest of its model stays on the meta device, without memory.

    Raise InputError unless the folder holds the whole model in bf16.
    """
    model, stored, names = architecture.open_checkpoint(folder)
    module, keys = text_model.output_head(model), {name: key for key, name in names.items()}
    if module is None:
        raise InputError(f"{folder}: expected a model with an output head, found a {type(model).__name__} without one")
    head = model.get_submodule(module)
    for name, parameter in list(head.named_parameters()):
        full = f"{module}.{name}"
        key = keys.get(model.all_tied_weights_keys.get(full)) or keys[full]
        values = stored[key].read().view(parameter.shape).to(device, dtype)
        setattr(head, name, torch.nn.Parameter(values, requires_grad=False))
    return Head(model.eval())
