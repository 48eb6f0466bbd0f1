"""Measure how far a model's predictions of a text are from those of its base, token by token.

All figures follow one protocol. The tokens of a text are cut into windows of `context` tokens that do not overlap. Each
window begins with the model's bos, which counts as one of its tokens; without a bos, the first token of a window is not
scored. A last window that is shorter counts too. For each scored token, the two models' distributions over the
vocabulary are compared: KL(base || model) in nats (Kullback & Leibler 1951), whether the likeliest token is the same,
and the model's own loss, whose mean is the logarithm of its perplexity.

Logits of a large vocabulary are never held for more than a block of tokens. The base's predictions of a text are kept
as its last hidden states (hidden_states), from which a head recomputes the logits (heads).
"""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from int4_qat.checkpoint import heads
from int4_qat.checkpoint.heads import Reading
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from int4_qat.tokenizer.windows import cut

BATCH_TOKENS = 8192  # tokens that a model reads at once


def windows(tokenizer: PreTrainedTokenizerBase, text: str, context: int, limit: int | None) -> list[list[int]]:
    """Return the windows of a text, as token ids; limit is the maximum number of tokens read from the text.

    Raise InputError if there are no windows.
    """
    tokens = tokenization.bare_ids(tokenizer, text)[:limit]
    found = [window for window in cut(tokenizer, tokens, context) if len(window) > 1]
    if not found:
        raise InputError(f"expected a text of two tokens or more, found {len(tokens)}")
    return found


def batches(found: list[list[int]]) -> list[list[list[int]]]:
    """Return windows in batches of equal length that a model reads at once; only the last window may be shorter."""
    size = max(1, BATCH_TOKENS // len(found[0]))
    *whole, last = found
    return [*(whole[start : start + size] for start in range(0, len(whole), size)), [last]]


@torch.no_grad()
def last_hidden_states(model: PreTrainedModel, batch: list[list[int]]) -> torch.Tensor:
    """Return the last hidden states (windows, tokens, width), from which a model's head computes logits."""
    tokens = torch.tensor(batch, device=model.device)
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


@torch.no_grad()
def compare(found: Reading, base: Reading, own: Reading | None, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return sums over a window that compare a model with its base and, if given, with its own weights in bf16.

    The sums are fp64 scalars, by the columns of divergence_samples.parquet. tokens (tokens) are the window's ids; each
    state except the last predicts the next token.
    """
    parts = [
        compare_block(log_probabilities([found, base, own], block), tokens[1:][block])
        for block in heads.blocks(len(tokens) - 1, found.head.vocabulary)
    ]
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def log_probabilities(readings: list[Reading | None], block: slice) -> list[torch.Tensor | None]:
    """Return each reading's log-probabilities (tokens, vocabulary) in fp32 for a block; equal readings share theirs."""
    made: dict[int, torch.Tensor] = {}
    for each in readings:
        if each is not None and id(each) not in made:
            made[id(each)] = each.head.logits(each.hidden[block]).log_softmax(-1, dtype=torch.float32)
    return [made.get(id(each)) for each in readings]


def compare_block(log_probabilities: list[torch.Tensor | None], following: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the sums over a block, from log-probabilities (tokens, vocabulary) and the ids (tokens) that follow."""
    found, base, own = log_probabilities
    sums = {
        "kl": total_kl(base, found),
        "same_top1": (found.argmax(-1) == base.argmax(-1)).sum(dtype=torch.float64),
        "loss": total_loss(found, following),
        "base_loss": total_loss(base, following),
    }
    return sums if own is None else sums | {"kl_from_own_bf16": total_kl(own, found)}


def total_kl(reference: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of KL(reference || found), from log-probabilities (tokens, vocabulary)."""
    return (reference - found).mul_(reference.exp()).sum(-1).sum(dtype=torch.float64)


def total_loss(found: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return the negative sum of the log-probabilities of the tokens that follow."""
    return -found.gather(1, following[:, None]).sum(dtype=torch.float64)


def on_host(sums: list[dict[str, torch.Tensor]]) -> list[dict[str, float]]:
    """Return the sums of windows as numbers, moved off the device in one transfer."""
    values = torch.stack([torch.stack([*each.values()]) for each in sums]).tolist()
    return [dict(zip(sums[0], row, strict=True)) for row in values]
