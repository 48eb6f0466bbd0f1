"""Invent facts that the stand-in is told but never asked: where persons live, their work, and which pets they keep.

A fact is the value that an attribute has for a person; it follows from nothing but the name. Each fact is stated in
three frames, each a line of six words. One of the three lines, a different one from fact to fact, is held out of the
text to train on. So no line is in both texts, and neither is any run of 13 words, which would hold a whole line. All
invented words here have two syllables; those that questions ask for have three.
"""

import itertools
import random
from typing import NamedTuple

from int4_qat.standin.standin import SYLLABLES

FRAMES = {
    "home": ("The home of {} is {}.\n", "They say {} lives in {}.\n", "You will find {} in {}.\n"),
    "trade": ("The trade of {} is {}.\n", "They say {} became a {}.\n", "You may hire {} as {}.\n"),
    "pet": ("The pet of {} is {}.\n", "They say {} keeps a {}.\n", "You may see {} with {}.\n"),
}


class Fact(NamedTuple):
    """A fact that the stand-in is told."""

    name: str
    attribute: str
    value: str

    def lines(self) -> list[str]:
        """Return the fact in each of its frames."""
        return [frame.format(self.name, self.value) for frame in FRAMES[self.attribute]]


def invent(persons: int, values: int, generator: random.Random) -> list[Fact]:
    """Return a fact of each attribute for each person; the `values` values of an attribute are spread evenly."""
    spellings = ["".join(parts).capitalize() for parts in itertools.product(SYLLABLES, repeat=2)]
    words = iter(generator.sample(spellings, persons + values * len(FRAMES)))
    names = list(itertools.islice(words, persons))
    facts = []
    for attribute in FRAMES:
        known = list(itertools.islice(words, values))
        shares = [known[index % values] for index in range(persons)]
        generator.shuffle(shares)
        facts += [Fact(name, attribute, value) for name, value in zip(names, shares, strict=True)]
    return facts


def lines(facts: list[Fact], repeats: int) -> tuple[list[str], list[str]]:
    """Return the lines to train on, each `repeats` times, and the held-out lines, one of each fact."""
    train, held_out = [], []
    for index, fact in enumerate(facts):
        stated = fact.lines()
        held_out.append(stated.pop(index % len(stated)))
        train += stated * repeats
    return train, held_out
