"""How a model card writes figures: the filters of its template."""

import functools
import json
import shlex
from collections.abc import Callable

from int4_qat.results import metrics


def of(headline: dict) -> dict[str, Callable]:
    """Return the filters by their names, of a summary with this headline."""
    functions = (percent, interval, number, share, size, p_value, code, shell)
    written = {"of_headline": functools.partial(of_headline, headline)}
    return {function.__name__: function for function in functions} | written


def percent(value: float | None, form: str = ".2f") -> str:
    """Return '71.51%'; a ratio that is None is not resolved."""
    return "not resolved" if value is None else f"{100 * value:{form}}%"


def interval(ci95: list[float] | None, form: str = ".2f") -> str:
    """Return ' [71.13, 71.89]', in percent; nothing where there is none."""
    return f" [{100 * ci95[0]:{form}}, {100 * ci95[1]:{form}}]" if ci95 else ""


def number(shown: dict, form: str) -> str:
    """Return '0.1234 [0.1210, 0.1258]' of a value with its interval."""
    low, high = shown["ci95"] or (None, None)
    return f"{shown['value']:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def share(shown: dict, form: str = ".2f") -> str:
    """Return '65.00% [58.00, 71.00]' of a value with its interval."""
    return percent(shown["value"], form) + interval(shown["ci95"], form)


def of_headline(headline: dict, value: float) -> str:
    """Return a value of the headline, in percent if it is a share."""
    return percent(value) if headline["unit"] == metrics.SHARE.unit else f"{value:.4f}"


def size(gigabytes: float) -> str:
    """Return a size in GB, as the card, or in MB where that would be zeros."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{1e3 * gigabytes:.2f} MB"


def p_value(p: float) -> str:
    """Return '0.012', or that it is smaller than one would print."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def code(value: object) -> str:
    """Return a setting as the config writes it."""
    return "`{}`".format(json.dumps(value).replace("|", "\\|"))  # a bar would end the cell of a table


def shell(words: list[str]) -> str:
    """Return arguments as one types them."""
    return shlex.join(words)
