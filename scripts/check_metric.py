"""Refuse a metric that lm-eval does not report for a task, before any GPU works on it.

This rule is separate from check_task, since another metric is a reason to re-summarize, not to re-ask the questions.

    python scripts/check_metric.py --checked resources/tasks/arc_challenge.json --metric acc_norm,none \\
        --output resources/metrics/arc_challenge.json
"""

import argparse
from pathlib import Path

from int4_qat.results import task_metrics
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checked", required=True, type=Path, help="JSON file written by check_task")
    parser.add_argument("--metric", required=True, help="metric for the summary, as <metric>,<filter>")
    parser.add_argument("--headline", help="metric that the summary shows first")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the name of the metric")
    arguments = parser.parse_args()
    checked = files.read_json(arguments.checked)
    task, metrics = checked["task"], checked["metrics"]
    if arguments.metric not in metrics:
        raise InputError(
            f"evaluation.tasks: {task}: expected a metric {' or '.join(metrics)}, found '{arguments.metric}'"
        )
    refuse_as_headline(arguments, checked)
    files.write_json(arguments.output, {"task": task, "metric": arguments.metric})


def refuse_as_headline(arguments: argparse.Namespace, checked: dict) -> None:
    """Raise InputError if this metric is the headline and has no interval, as it is not a mean over documents."""
    kind, members = checked["metrics"][arguments.metric], max(1, len(checked["members"]))
    if checked["task"] == arguments.headline and not task_metrics.has_score(kind, members):
        found = f"'{arguments.metric}' of {checked['task']}, which is lm-eval's {kind['aggregation']}"
        raise InputError(f"evaluation.headline: expected a mean over documents, found {found}")


if __name__ == "__main__":
    errors.run(main)
