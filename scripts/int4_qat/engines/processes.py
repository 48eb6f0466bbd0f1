"""Run engines of other environments as child processes, with a log and a time limit; no process outlives its block."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from int4_qat.system import parallel, signals
from int4_qat.system.errors import InputError

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# A traceback's last line, not its "raise RuntimeError(".
RAISED = re.compile(r"(?<!raise )\b\w*(Error|Exception)(: |$)")
GRACE_SECONDS = 30


def run(name: str, module: str, words: list, log: Path, time_limit: float, **options) -> None:
    """Run a module's command to its end; raise InputError with its last log lines if it fails or takes too long."""
    with started(module, words, log, **options) as process:
        try:
            code = process.wait(time_limit)
        except subprocess.TimeoutExpired:
            raise InputError(f"{name} took more than {time_limit:g} s; {last_lines(log)}") from None
    if code:
        raise InputError(f"{name} ended with exit code {code}; {last_lines(log)}")


@contextmanager
def started(
    module: str, words: list, log: Path, environment: Mapping[str, str] = os.environ, folder: Path | None = None
) -> Iterator[subprocess.Popen]:
    """Yield a running command in a process group of its own, which is gone after the block, whatever happens.

    The command runs in `folder`, or in this program's own working folder if that is None.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
            preexec_fn=parallel.end_with_parent,
        )
    with signals.unwound(process.terminate):  # it ends while the code that waits for it is unwound
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """Let an engine end its processes, then kill those that are left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(log: Path) -> str:
    """Return the end of a log in one line: its last three errors and its last line, or its last three lines."""
    text = COLOUR.sub("", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors: dict[str, str] = {}  # the first line of each message: several processes log the same one
    for line in lines:
        if raised := RAISED.search(line):
            errors.setdefault(line[raised.start() :], line)
    shown = dict.fromkeys([*list(errors.values())[-3:], *lines[-1:]]) if errors else lines[-3:]
    return f"the end of {log}: {' | '.join(shown) or 'it is empty'}"
