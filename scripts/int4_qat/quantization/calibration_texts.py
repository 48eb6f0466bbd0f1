"""Read the texts that a method calibrates on, as windows of tokens: equal shares of each file, drawn by a seed."""

import random
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from int4_qat.system.errors import InputError
from int4_qat.tokenizer import pieces, windows


def read(paths: list[Path], tokenizer: PreTrainedTokenizerBase, samples: int, length: int, seed: int) -> torch.Tensor:
    """Return token ids (samples, length) from texts, conversations and tables of formatted texts.

    Each file gives the same number of windows; if `samples` does not divide evenly, the first files give one more.
    Raise InputError if a file holds too little text.
    """
    draw = random.Random(seed)
    shares = [samples // len(paths) + (number < samples % len(paths)) for number in range(len(paths))]
    found = [drawn(path, tokenizer, share, length, draw) for path, share in zip(paths, shares, strict=True)]
    return torch.from_numpy(np.concatenate(found)).long()


def drawn(path: Path, tokenizer: PreTrainedTokenizerBase, count: int, length: int, draw: random.Random) -> np.ndarray:
    """Return `count` whole windows of a file, in a random order; raise InputError if there are fewer."""
    tokens = pieces.until(pieces.tokens(path, tokenizer, draw), count * length)
    whole = windows.whole(tokens, windows.head(tokenizer), length)
    if len(whole) < count:
        raise InputError(f"{path}: expected {count} windows of {length} tokens to calibrate on, found {len(whole)}")
    return whole[draw.sample(range(len(whole)), count)]
