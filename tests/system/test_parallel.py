"""Test that work in threads and in processes returns results in order, keeps errors, and leaves no process behind."""

import os
import signal

import pytest

from int4_qat.system import parallel
from int4_qat.system.errors import InputError

NAMES = [f"tensor {number}" for number in range(20)]
each_way = pytest.mark.parametrize("way", [parallel.in_threads, parallel.in_processes])


@each_way
def test_every_name_has_its_result_in_order(way):
    assert list(way(len, NAMES, "work").items()) == [(name, len(name)) for name in NAMES]


@each_way
def test_nothing_to_do_is_done(way):
    assert way(len, [], "work") == {}


@each_way
def test_an_error_comes_as_it_is(way):
    def work(name: str) -> None:
        if name == NAMES[7]:
            raise InputError(f"{name}: expected no 7, found one")

    with pytest.raises(InputError, match=r"^tensor 7: expected no 7, found one$"):
        way(work, NAMES, "work")


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(InputError, match=r"^compare: a process was killed"):
        parallel.in_processes(lambda _: os.kill(os.getpid(), signal.SIGKILL), NAMES, "compare")


def test_processes_do_the_work_and_end_when_they_are_asked_to():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # like a training's handler, which does not end the process
    try:
        found = parallel.in_processes(lambda _: (os.getpid(), signal.getsignal(signal.SIGTERM)), NAMES, "work")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.getpid() not in {process for process, _ in found.values()}
    assert {handler for _, handler in found.values()} == {signal.SIG_DFL}
