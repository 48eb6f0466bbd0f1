"""The texts that a method is calibrated on, as windows of tokens: equal shares of each file, drawn by a seed."""

import random
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from int4_qat.data import parquet_files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, windows

ROWS = 256  # of a table, tokenized at once


def read(paths: list[Path], tokenizer: PreTrainedTokenizerBase, samples: int, length: int, seed: int) -> torch.Tensor:
    """Return token ids (samples, length) of text files and of tables of formatted texts.

    Each file gives as many windows as the others, the first ones one more if samples does not divide. Raise InputError
    if one holds too little text.
    """
    draw = random.Random(seed)
    shares = [samples // len(paths) + (number < samples % len(paths)) for number in range(len(paths))]
    found = [
        window
        for path, share in zip(paths, shares, strict=True)
        for window in drawn(path, tokenizer, share, length, draw)
    ]
    return torch.tensor(found)


def drawn(
    path: Path, tokenizer: PreTrainedTokenizerBase, count: int, length: int, draw: random.Random
) -> list[list[int]]:
    """Return so many whole windows of a file, in a random order; raise InputError if there are fewer."""
    if path.suffix == ".parquet":
        tokens = tokens_of_rows(path, tokenizer, count * length, draw)
    else:
        tokens = tokenization.bare_ids(tokenizer, path.read_bytes().decode("utf-8"))
    whole = [window for window in windows.cut(tokenizer, tokens, length) if len(window) == length]
    if len(whole) < count:
        raise InputError(f"{path}: expected {count} windows of {length} tokens to calibrate on, found {len(whole)}")
    return draw.sample(whole, count)


def tokens_of_rows(path: Path, tokenizer: PreTrainedTokenizerBase, enough: int, draw: random.Random) -> list[int]:
    """Return the tokens of formatted texts, without bos and in a random order, until there are enough."""
    texts = [text for batch in parquet_files.read_batches(path, ["text"]) for text in batch["text"].to_pylist()]
    draw.shuffle(texts)
    bos = tokenization.template_bos(tokenizer) or ""
    tokens: list[int] = []
    for start in range(0, len(texts), ROWS):
        rows = [text.removeprefix(bos) for text in texts[start : start + ROWS]]
        tokens += [token for row in tokenizer(rows, add_special_tokens=False)["input_ids"] for token in row]
        if len(tokens) >= enough:
            break
    return tokens
