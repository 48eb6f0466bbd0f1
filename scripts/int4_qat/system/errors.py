"""Report bad input as one clear line on standard error with exit code 1; tracebacks are for our own mistakes."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """Input from the user that is not as expected; the message names the file, key or row."""


def one_line(message: object) -> str:
    """Return a message of several lines as one line."""
    return " ".join(str(message).split())


def run(main: Callable[[], None]) -> None:
    """Run a program's main function; an InputError ends the program with one line."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
