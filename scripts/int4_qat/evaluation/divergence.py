"""How far a model's predictions of a text are from those of its base, token by token.

The protocol, to which all figures refer: the tokens of a text are cut into windows of `context` tokens that do not
overlap. Each begins with the model's bos, which counts among them; without a bos a window's first token is not scored.
A last window that is shorter counts too. Of each scored token the two models' distributions over the vocabulary are
compared: KL(base || model) in nats (Kullback & Leibler 1951), whether the likeliest token is the same, and the
model's own loss, whose mean is the logarithm of its perplexity.

Logits of a large vocabulary are never held for more than a block of tokens. What the base says of a text is kept as its
last hidden states, from which its logits are made again: all variants have the base's head.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast

from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization

BATCH_TOKENS = 8192  # that a model reads at once
BLOCK_BYTES = 2**28  # of one matrix of logits in fp32
Logits = Callable[[torch.Tensor], torch.Tensor]  # (tokens, width) last hidden states to (tokens, vocabulary)


class Sums(NamedTuple):
    """Of the scored tokens of a window."""

    tokens: int
    kl: float
    same_top1: int
    loss: float
    base_loss: float


def windows(tokenizer: PreTrainedTokenizerBase, text: str, context: int, limit: int | None) -> list[list[int]]:
    """Return the windows of a text, as token ids; limit is the most tokens of the text that are read.

    Raise InputError if there are none.
    """
    bos = [tokenizer.bos_token_id] if tokenization.adds_bos(tokenizer) else []
    tokens, step = tokenization.bare_ids(tokenizer, text)[:limit], context - len(bos)
    found = [bos + tokens[start : start + step] for start in range(0, len(tokens), step)]
    found = [window for window in found if len(window) > 1]
    if not found:
        raise InputError(f"expected a text of two tokens or more, found {len(tokens)}")
    return found


def batches(found: list[list[int]]) -> Iterator[list[list[int]]]:
    """Yield windows of equal length, as many as a model reads at once."""
    size = max(1, BATCH_TOKENS // len(found[0]))
    *whole, last = found
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
    yield [last]


@torch.no_grad()
def last_hidden_states(model: PreTrainedModel, batch: list[list[int]]) -> torch.Tensor:
    """Return (windows, tokens, width): what a model's head makes logits of."""
    tokens = torch.tensor(batch, device=model.device)
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def logits_of(model: PreTrainedModel) -> Logits:
    """Return what makes logits of last hidden states, by the model's own code: head, caps and scales."""

    @torch.no_grad()
    def logits(hidden: torch.Tensor) -> torch.Tensor:
        with answering(model, hidden):
            tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            return model(input_ids=tokens, use_cache=False).logits[0]

    return logits


@contextmanager
def answering(model: PreTrainedModel, hidden: torch.Tensor) -> Iterator[None]:
    """Let the body of a model answer with some last hidden states (tokens, width) whatever it is asked."""
    body = model.base_model
    body.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden[None])
    try:
        yield
    finally:
        del body.forward


def head_digest(model: PreTrainedModel) -> str:
    """Return a SHA-256 of the head as it computes: models with the same one make the same logits of a state."""
    total = hashlib.sha256()
    for name, parameter in sorted(model.get_output_embeddings().named_parameters()):
        total.update(name.encode())
        for rows in parameter.detach().split(max(1, BLOCK_BYTES // (4 * math.prod(parameter.shape[1:])))):
            total.update(rows.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


@torch.no_grad()
def compare(hidden: torch.Tensor, logits: Logits, reference: torch.Tensor, base: Logits, tokens: torch.Tensor) -> Sums:
    """Return the sums of a window, of its last hidden states (tokens, width) and the base's, and their heads.

    tokens (tokens) are the window's ids; each state but the last predicts the next.
    """
    kl = same = loss = base_loss = 0.0
    for start, stop in blocks(len(tokens) - 1, logits(hidden[:1]).shape[1]):
        found, expected = (
            make(states[start:stop]).float().log_softmax(-1) for make, states in ((logits, hidden), (base, reference))
        )
        kl += (expected.exp() * (expected - found)).sum(dtype=torch.float64).item()
        same += (found.argmax(-1) == expected.argmax(-1)).sum().item()
        following = tokens[start + 1 : stop + 1, None]
        loss -= found.gather(1, following).sum(dtype=torch.float64).item()
        base_loss -= expected.gather(1, following).sum(dtype=torch.float64).item()
    return Sums(len(tokens) - 1, kl, int(same), loss, base_loss)


def blocks(tokens: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of blocks of tokens whose logits are held at once."""
    step = max(1, BLOCK_BYTES // (4 * vocabulary))
    for start in range(0, tokens, step):
        yield start, min(start + step, tokens)
