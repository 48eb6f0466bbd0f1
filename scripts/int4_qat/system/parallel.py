"""Do the same work on many tensors at once: in threads, or in processes where threads would wait for the GIL."""

import contextlib
import ctypes
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch
from tqdm import tqdm

from int4_qat.system.errors import InputError

LIBC = ctypes.CDLL(None)
SIGNAL_AT_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG
Result = TypeVar("Result")
_inherited: list[Callable] = []  # the work of forked processes, which inherit it, so that it need not be picklable


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies: a job that is killed cannot clean up itself."""
    LIBC.prctl(SIGNAL_AT_DEATH_OF_PARENT, signal.SIGTERM)


@contextlib.contextmanager
def killed_in_one_line(title: str) -> Iterator[None]:
    """Raise InputError, which begins with the title, if a process of a pool is killed."""
    try:
        yield
    except BrokenProcessPool:
        raise InputError(f"{title}: a process was killed, probably because memory ran out") from None


def in_threads(work: Callable[[str], Result], names: Iterable[str], title: str) -> dict[str, Result]:
    """Call `work` on every name, one thread per core; return the results by name."""
    return _spread(ThreadPoolExecutor, work, names, title)


def in_processes(work: Callable[[str], Result], names: Iterable[str], title: str) -> dict[str, Result]:
    """Call `work` on every name, one forked process per core; return the results by name, which must be picklable.

    This process sees nothing that `work` changes in memory, and `work` must not use CUDA. Raise InputError if a process
    is killed.
    """
    _inherited.append(work)
    try:
        pool = functools.partial(
            ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"), initializer=_begin
        )
        with killed_in_one_line(title):
            return _spread(pool, _work_as_inherited, names, title)
    finally:
        _inherited.pop()


def _begin() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the inherited handler may not end the process
    end_with_parent()


def _work_as_inherited(name: str) -> Result:
    return _inherited[-1](name)


def _spread(pool: Callable[[int], Executor], work: Callable, names: Iterable[str], title: str) -> dict:
    names, workers = list(names), torch.get_num_threads()
    torch.set_num_threads(1)  # per worker; the threads of a larger pool would not survive the fork
    try:
        with pool(min(workers, max(1, len(names)))) as executor:
            results = tqdm(executor.map(work, names), desc=title, unit=" tensors", total=len(names), mininterval=1)
            return dict(zip(names, results, strict=True))
    finally:
        torch.set_num_threads(workers)
