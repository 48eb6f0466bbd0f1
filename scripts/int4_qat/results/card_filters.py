"""Format the figures of a model card: the filters of its template."""

import functools
import json
import shlex
from collections.abc import Callable

from int4_qat.results import metrics


def of(headline: dict) -> dict[str, Callable]:
    """Return the filters by name, for a summary with this headline."""
    functions = (percent, interval, number, share, size, p_value, code, shell)
    written = {"of_headline": functools.partial(of_headline, headline)}
    return {function.__name__: function for function in functions} | written


def percent(value: float | None, form: str = ".2f") -> str:
    """Return a share as '71.51%', or 'not resolved' if it is None."""
    return "not resolved" if value is None else f"{100 * value:{form}}%"


def interval(ci95: list[float] | None, form: str = ".2f") -> str:
    """Return an interval in percent as ' [71.13, 71.89]', or an empty text if there is none."""
    return f" [{100 * ci95[0]:{form}}, {100 * ci95[1]:{form}}]" if ci95 else ""


def number(shown: dict, form: str) -> str:
    """Return a value with its interval as '0.1234 [0.1210, 0.1258]'."""
    low, high = shown["ci95"] or (None, None)
    return f"{shown['value']:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def share(shown: dict, form: str = ".2f") -> str:
    """Return a value with its interval as '65.00% [58.00, 71.00]'."""
    return percent(shown["value"], form) + interval(shown["ci95"], form)


def of_headline(headline: dict, value: float) -> str:
    """Return a value of the headline, in percent if it is a share."""
    return percent(value) if headline["unit"] == metrics.SHARE.unit else f"{value:.4f}"


def size(gigabytes: float) -> str:
    """Return a size in GB, as the card does, or in MB below 0.1 GB, where GB would show mostly zeros."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{1e3 * gigabytes:.2f} MB"


def p_value(p: float) -> str:
    """Return a p-value as '0.012', or as '< 0.0001' if it is smaller than that."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def code(value: object) -> str:
    """Return a setting as code, in the way the config writes it."""
    return "`{}`".format(json.dumps(value).replace("|", "\\|"))  # a bar would end a table's cell


def shell(words: list[str]) -> str:
    """Return arguments as they are typed in a shell."""
    return shlex.join(words)
