"""The letters by which a question names its choices."""

import string

ALL = tuple(string.ascii_uppercase)


def first(count: int) -> tuple[str, ...]:
    """Return the letters of so many choices, at most 26."""
    return ALL[:count]
