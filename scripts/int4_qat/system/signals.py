"""Let a signal end a program as an exit does, so that what it made for its own use is deleted."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM)  # Slurm sends the second ahead of preemption, and at a cancellation


@contextmanager
def unwound(first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let SIGINT and SIGTERM call `first` and then end the program, with all open blocks closed.

    A handler that the block sets itself, as a training does, stays.
    """

    def interrupted(number: int, _) -> None:
        first()
        sys.exit(128 + number)

    before = {number: signal.signal(number, interrupted) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupted:
                signal.signal(number, handler)
