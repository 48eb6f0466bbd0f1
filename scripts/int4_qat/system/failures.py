"""Collect the reasons of a run's failed jobs, so that they can be read at the end of Snakemake's output."""

import re
from pathlib import Path

BAR = "%|"  # between the share and the bar itself, as tqdm prints them
EVENT = re.compile(r"^(?=Error in rule |Finished jobid: )", re.MULTILINE)
FINISHED = re.compile(r"Finished jobid: (?P<job>\d+)")
ERROR = re.compile(
    r"Error in rule (?P<rule>\w+):\n(?:    message: (?P<message>.*)\n)?    jobid: (?P<job>\d+)\n"
    r"(?:    .*\n)*?    log: (?P<logs>.*) \(check log file"
)


def reasons(snakemake_log: Path) -> list[str]:
    """Return a line for each job that failed and did not succeed in a later attempt.

    The line has the rule, what a cluster said about the job, the last line of the job's log (but no progress bar), and
    the log's path. If the program wrote nothing, it is the log that the cluster kept.
    """
    failed: dict[str, str] = {}
    for event in EVENT.split(snakemake_log.read_text()):
        if finished := FINISHED.match(event):
            failed.pop(finished["job"], None)
        elif error := ERROR.match(event):
            said = "" if error["message"] in (None, "None") else error["message"].split(". ")[0] + "; "
            failed[error["job"]] = f"{error['rule']}: {said}{last_line(error['logs'].split(', '))}"
    return list(failed.values())


def last_line(logs: list[str]) -> str:
    """Return the last line of the first log that is not empty, with the log's path."""
    for log in map(Path, logs):
        # A progress bar separates its states by carriage returns, which end lines here. It is no reason for a failure.
        if log.exists() and (text := log.read_text(errors="replace").strip()):
            lines = text.splitlines()
            said = [line for line in lines if BAR not in line] or [f"ended at {lines[-1].strip()}"]
            return f"{said[-1].strip()} ({log})"
    return f"no output ({', '.join(logs)})"
