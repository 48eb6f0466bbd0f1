"""Measure how much of one text occurs in another: runs of 13 words, regardless of case and punctuation.

This is the measure of contamination studies since GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C: n-grams of at
most 13 words and at least 8, since shorter ones collide by chance). The searched text is read as a stream, so that
memory depends on the runs that are looked for.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from int4_qat.data import conversations

LONGEST, SHORTEST = 13, 8  # words per run
NOT_WORDS = re.compile(r"[\W_]+")
BLOCK = 1 << 20  # characters
Run = tuple[str, ...]


def normalized(text: str) -> str:
    """Return the words of a text, letters and digits in lower case, separated by one blank."""
    return NOT_WORDS.sub(" ", text).strip().lower()


def runs(text: str) -> set[Run]:
    """Return the runs of words of a text; a text shorter than a run is itself one, if it has any words."""
    words = normalized(text).split()
    return set(_runs(words, min(len(words), LONGEST)))


def runs_of_question(question: str, choices: Iterable[str]) -> set[Run]:
    """Return the runs of a question; one that is too short to be told apart is taken with its choices."""
    is_short = len(normalized(question).split()) < SHORTEST
    return runs(" ".join([question, *choices]) if is_short else question)


def found(wanted: set[Run], parts: Iterable[str]) -> set[Run]:
    """Return the wanted runs that occur in a text, which comes in parts that cut no word."""
    lengths = {len(run) for run in wanted}
    standing, words = set(), []
    for part in parts:
        words += normalized(part).split()
        for length in lengths:
            standing |= wanted.intersection(_runs(words, length))
        words = words[1 - LONGEST :]  # a run may continue in the next part
    return standing


def _runs(words: list[str], length: int) -> Iterator[Run]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def parts_of(path: Path) -> Iterator[str]:
    """Yield a text file in blocks of lines, or a conversation file by the contents of each conversation."""
    if path.suffix == conversations.SUFFIX:
        yield from conversations.contents(path)
        return
    with path.open(encoding="utf-8") as stream:
        while lines := stream.readlines(BLOCK):
            yield "".join(lines)
