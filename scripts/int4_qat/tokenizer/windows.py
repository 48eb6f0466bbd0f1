"""Cut running text into windows of tokens, each with the model's bos at its head."""

from collections.abc import Iterable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from int4_qat.tokenizer import tokenization


def head(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the bos with which each window begins, or an empty list if the tokenizer adds none."""
    return [tokenizer.bos_token_id] if tokenization.adds_bos(tokenizer) else []


def cut(tokenizer: PreTrainedTokenizerBase, tokens: list[int], length: int) -> list[list[int]]:
    """Return windows of at most `length` tokens, the bos included, that do not overlap."""
    bos = head(tokenizer)
    step = length - len(bos)
    return [bos + tokens[start : start + step] for start in range(0, len(tokens), step)]


def whole(parts: Iterable[Sequence[int]], ahead: list[int], length: int) -> np.ndarray:
    """Return int32 (windows, length): running values, one per token, cut as `cut` does, with `ahead` as the bos.

    The rest at the end that fills no window is dropped.
    """
    values = np.concatenate([np.empty(0, np.int32), *(np.array(part, np.int32) for part in parts)])
    step = length - len(ahead)
    count = len(values) // step
    heads = np.tile(np.array(ahead, np.int32), (count, 1))
    return np.hstack([heads, values[: count * step].reshape(count, step)])
