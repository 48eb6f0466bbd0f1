"""Test what is said of an engine that failed."""

import pytest

from int4_qat.engines import processes


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["WARNING ImportError: no flash_attn", "loading", "Killed"], "WARNING ImportError: no flash_attn | Killed"),
        (["RuntimeError: out of cards"], "RuntimeError: out of cards"),
        (
            [
                "(Worker) ImportError: no mslk",
                "(Core) Exception: see above",
                "Exception: see above",
                "raise RuntimeError(",
                "RuntimeError: see above",
            ],
            "(Worker) ImportError: no mslk | (Core) Exception: see above | RuntimeError: see above",
        ),
        (["raise AssertionError", "AssertionError", "after"], "AssertionError | after"),
        (["one", "two", "", "three", "four"], "two | three | four"),
        ([], "it is empty"),
    ],
)
def test_the_end_of_a_log_has_its_errors_and_its_last_line(tmp_path, lines, expected):
    log = tmp_path / "engine.log"
    log.write_text("\n".join(lines))
    assert processes.last_lines(log) == f"the end of {log}: {expected}"
