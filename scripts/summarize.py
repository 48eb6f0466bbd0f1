"""Put all variants' results into one table, with the columns of the card's three tables, and say what they settle.

    python scripts/summarize.py --model demo --results results/demo --headline mmlu \\
        --measured '{"base-bf16": ["mmlu", "memory", "latency"], "base-int4": ["mmlu", "memory", "latency"],
        "qat-int4": ["mmlu", "memory", "latency", "parity"]}' \\
        --references '{"base-bf16": "base-int4", "base-int4": "base-int4", "qat-int4": "base-int4"}' \\
        --calibrated '{}' --arms '{"qat": {"quantization": "int4", "seed": 3407}}' \\
        --data-reports resources/mmlu_train/report.json resources/mmlu/report.json \\
        --contamination resources/contamination.json \\
        --json results/demo/summary.json --csv results/demo/summary.csv
"""

import argparse
import json
from pathlib import Path

from int4_qat.results import measurements, summary, tables
from int4_qat.system import errors, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="key of the model in the config")
    parser.add_argument("--measured", required=True, type=json.loads, help="measurements of each variant, as JSON")
    parser.add_argument("--headline", required=True, help="metric that the summary shows first")
    parser.add_argument("--questions", nargs="*", default=[], help="names of your own sets of questions")
    parser.add_argument("--tasks", nargs="*", default=[], help="metric of each lm-eval task, as <task>=<metric>")
    parser.add_argument("--arms", required=True, type=json.loads, help="recipe of each arm, as JSON")
    parser.add_argument(
        "--references", required=True, type=json.loads, help="quantized base to compare each variant with, as JSON"
    )
    parser.add_argument("--calibrated", required=True, type=json.loads, help="method of each calibrated base, as JSON")
    parser.add_argument(
        "--not-served", default={}, type=json.loads, help="reason for each missing measurement of a variant, as JSON"
    )
    parser.add_argument("--results", required=True, type=Path, help="folder with the results of the model")
    parser.add_argument("--data-reports", required=True, nargs="+", type=Path, help="report.json of each download_mmlu")
    parser.add_argument("--contamination", required=True, type=Path, help="JSON file written by check_contamination")
    parser.add_argument("--json", required=True, type=Path, help="JSON file for the summary")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file for the summary")
    arguments = parser.parse_args()
    tasks = dict(task.split("=") for task in arguments.tasks)
    measured = measurements.of_names(arguments.measured, arguments.questions, tasks)
    found = {
        "model": arguments.model,
        "data": merged([files.read_json(path) for path in arguments.data_reports]),
        "contamination": files.read_json(arguments.contamination),
        **summary.derive(
            arguments.results,
            measured,
            arguments.arms,
            arguments.references,
            arguments.calibrated,
            arguments.headline,
            arguments.not_served,
        ),
        "source": {
            **{path.parent.name: str(path) for path in arguments.data_reports},
            "contamination": str(arguments.contamination),
        },
    }
    with files.whole(arguments.csv) as unfinished:
        tables.flat(found["variants"], measured).to_csv(unfinished, index=False)
    files.write_json(arguments.json, found)
    for title, table in tables.printed(found, measured).items():
        print(f"{title}\n{table.to_string(index=False, float_format='{:.4g}'.format, na_rep='')}\n")


def merged(reports: list[dict]) -> dict:
    """Return what several downloads from one source report, with the splits of all."""
    found = {key: value for report in reports for key, value in report.items()}
    return found | {"splits": {split: counts for report in reports for split, counts in report["splits"].items()}}


if __name__ == "__main__":
    errors.run(main)
