"""Define the letters that name the choices of a question."""

import string

ALL = tuple(string.ascii_uppercase)


def first(count: int) -> tuple[str, ...]:
    """Return the letters of `count` choices, at most 26."""
    return ALL[:count]
