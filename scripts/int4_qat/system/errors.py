"""Bad input is one clear line on standard error and exit code 1; a traceback is for our own mistakes."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """What the user gave is not what was expected; the message names the file, key or row."""


def one_line(message: object) -> str:
    """Return a message of several lines as one."""
    return " ".join(str(message).split())


def run(main: Callable[[], None]) -> None:
    """Run a program's main; an InputError ends it with its one line."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
