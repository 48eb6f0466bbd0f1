"""The same work on many tensors at once: in threads, or in processes where threads would wait for Python's lock."""

import ctypes
import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

LIBC = ctypes.CDLL(None)
SIGNAL_AT_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG
Result = TypeVar("Result")
_inherited: list[Callable] = []  # what forked processes work by, which need not be picklable then


def end_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies: a job that is killed cannot clean up itself."""
    LIBC.prctl(SIGNAL_AT_DEATH_OF_PARENT, signal.SIGTERM)


def in_threads(work: Callable[[str], Result], names: Iterable[str], title: str) -> dict[str, Result]:
    """Call `work` on every name, one thread per core; return the results by name."""
    return _spread(ThreadPoolExecutor, work, names, title)


def in_processes(work: Callable[[str], Result], names: Iterable[str], title: str) -> dict[str, Result]:
    """Call `work` on every name, one forked process per core; return the results by name, which must be picklable.

    Nothing that `work` changes in memory is seen by this process, and no CUDA may be used in it.
    """
    _inherited.append(work)
    try:
        pool = functools.partial(
            ProcessPoolExecutor, mp_context=multiprocessing.get_context("fork"), initializer=end_with_parent
        )
        return _spread(pool, _work_as_inherited, names, title)
    finally:
        _inherited.pop()


def _work_as_inherited(name: str) -> Result:
    return _inherited[-1](name)


def _spread(pool: Callable[[int], Executor], work: Callable, names: Iterable[str], title: str) -> dict:
    names, workers = list(names), torch.get_num_threads()
    torch.set_num_threads(1)  # of each worker; more would also outlive no fork
    try:
        with pool(min(workers, max(1, len(names)))) as executor:
            results = tqdm(executor.map(work, names), desc=title, unit=" tensors", total=len(names), mininterval=1)
            return dict(zip(names, results, strict=True))
    finally:
        torch.set_num_threads(workers)
