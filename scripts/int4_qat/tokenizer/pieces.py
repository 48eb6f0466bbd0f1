"""Read files of text in pieces that can be taken in any order, so that no more text is tokenized than is needed.

A piece is a row of a parquet file of formatted texts, or some lines of a text file or of a conversation file.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from int4_qat.data import conversations, parquet_files
from int4_qat.tokenizer import tokenization

TABLE = ".parquet"
ROWS = 256  # rows of a table that are tokenized at once
BYTES = 1 << 14  # minimum of a piece, which ends with a line; small, so that even a few windows come from many places


class Span(NamedTuple):
    """Some lines of a file: the byte at which they begin, their size in bytes, and the number of the first line."""

    start: int
    size: int
    line: int


def until(parts: Iterable[list[int]], enough: int) -> Iterator[list[int]]:
    """Yield parts until they hold `enough` tokens."""
    found = 0
    for part in parts:
        yield part
        found += len(part)
        if found >= enough:
            return


def tokens(path: Path, tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> Iterator[list[int]]:
    """Yield the tokens of each text of a file, without bos; the pieces come in a random order."""
    bos = tokenization.template_bos(tokenizer) or ""
    read = of_table(path, draw) if path.suffix == TABLE else of_lines(path, tokenizer, draw)
    for texts in read:
        yield from tokenizer([text.removeprefix(bos) for text in texts], add_special_tokens=False)["input_ids"]


def of_table(path: Path, draw: random.Random) -> Iterator[list[str]]:
    """Yield the formatted texts of a table in a random order, ROWS at a time."""
    texts = [text for batch in parquet_files.read_batches(path, ["text"]) for text in batch["text"].to_pylist()]
    draw.shuffle(texts)
    for start in range(0, len(texts), ROWS):
        yield texts[start : start + ROWS]


def of_lines(path: Path, tokenizer: PreTrainedTokenizerBase, draw: random.Random) -> Iterator[list[str]]:
    """Yield each piece of a file in a random order: its text, or its conversations as the template renders them."""
    spans = spans_of(path)
    draw.shuffle(spans)
    with path.open("rb") as stream:
        for span in spans:
            stream.seek(span.start)
            text = stream.read(span.size).decode("utf-8")
            yield rendered(path, span.line, text, tokenizer) if path.suffix == conversations.SUFFIX else [text]


def spans_of(path: Path) -> list[Span]:
    """Return the pieces of a file in order."""
    spans, start, line = [], 0, 1
    with path.open("rb") as stream:
        while lines := stream.readlines(BYTES):
            spans.append(Span(start, sum(map(len, lines)), line))
            start, line = start + spans[-1].size, line + len(lines)
    return spans


def rendered(path: Path, first: int, text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the conversations of some lines, rendered; `first` is the number of the first line in the file."""
    lines = enumerate(text.removesuffix("\n").split("\n"), start=first)
    return [
        tokenization.render_messages(tokenizer, conversations.read_line(line), f"{path}, line {number}")
        for number, line in lines
    ]
