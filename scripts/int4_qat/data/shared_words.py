"""How much of one text occurs in another: sequences of 13 words, without regard to case and punctuation.

The measure of the contamination studies since GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C: n-grams of 13
words at most, and of 8 at least, since shorter ones collide by chance). The text to be searched is read in a stream:
memory goes by the runs that are looked for.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from int4_qat.data import conversations

LONGEST, SHORTEST = 13, 8  # words of a run
NOT_WORDS = re.compile(r"[\W_]+")
BLOCK = 1 << 20  # characters
Run = tuple[str, ...]


def normalized(text: str) -> str:
    """Return the words of a text, letters and digits in lower case, with a blank between."""
    return NOT_WORDS.sub(" ", text).strip().lower()


def runs(text: str) -> set[Run]:
    """Return the runs of words of a text; of a text shorter than one the whole, if it has words at all."""
    words = normalized(text).split()
    return set(_runs(words, min(len(words), LONGEST)))


def runs_of_question(question: str, choices: Iterable[str]) -> set[Run]:
    """Return the runs of a question; one that is too short to tell is taken with its choices."""
    is_short = len(normalized(question).split()) < SHORTEST
    return runs(" ".join([question, *choices]) if is_short else question)


def found(wanted: set[Run], parts: Iterable[str]) -> set[Run]:
    """Return those of some runs that stand in a text, which comes in parts that cut no word."""
    lengths = {len(run) for run in wanted}
    standing, words = set(), []
    for part in parts:
        words += normalized(part).split()
        for length in lengths:
            standing |= wanted.intersection(_runs(words, length))
        words = words[1 - LONGEST :]  # a run may go on in the next part
    return standing


def _runs(words: list[str], length: int) -> Iterator[Run]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def parts_of(path: Path) -> Iterator[str]:
    """Yield a text file in blocks of lines, or what is said in each of its conversations."""
    if path.suffix == conversations.SUFFIX:
        yield from conversations.contents(path)
        return
    with path.open(encoding="utf-8") as stream:
        while lines := stream.readlines(BLOCK):
            yield "".join(lines)
