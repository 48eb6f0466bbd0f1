"""Test what a signal leaves behind."""

import signal

import pytest

from int4_qat.system import scratch, signals


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_deletes_a_scratch_folder(tmp_path, monkeypatch, number):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.getsignal(number)

    def work():
        with scratch.folder() as folder:
            (folder / "tables").touch()
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as ended:
        work()
    assert ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before


def test_a_handler_of_the_block_stays():
    own, before = [], signal.getsignal(signal.SIGTERM)
    try:
        with signals.unwound():
            signal.signal(signal.SIGTERM, lambda number, _: own.append(number))
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert own == [signal.SIGTERM]
