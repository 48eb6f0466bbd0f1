"""Put all variants' results into one table, with the columns of the card's three tables, and say what they settle.

    python scripts/summarize.py --model demo --results results/demo --headline mmlu \\
        --measured '{"base-bf16": ["mmlu", "memory", "latency"], "base-int4": ["mmlu", "memory", "latency"],
        "qat-int4": ["mmlu", "memory", "latency", "parity"]}' \\
        --references '{"base-bf16": "base-int4", "base-int4": "base-int4", "qat-int4": "base-int4"}' \\
        --calibrated '{}' --arms '{"qat": {"quantization": "int4", "seed": 3407}}' \\
        --data-report resources/mmlu/report.json \\
        --contamination resources/contamination.json --costs results/demo/costs.json \\
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
    parser.add_argument("--measured", required=True, type=json.loads, help="JSON: what was measured of each variant")
    parser.add_argument("--headline", required=True, help="the metric of which the rows tell first")
    parser.add_argument("--questions", nargs="*", default=[], help="names of one's own sets of questions")
    parser.add_argument("--tasks", nargs="*", default=[], help="<task>=<metric>: which metric of which further task")
    parser.add_argument("--arms", required=True, type=json.loads, help="JSON: the recipe of each arm, by its name")
    parser.add_argument(
        "--references", required=True, type=json.loads, help="JSON: the quantized base of each variant's recovery"
    )
    parser.add_argument("--calibrated", required=True, type=json.loads, help="JSON: the method of each calibrated base")
    parser.add_argument(
        "--not-served", default={}, type=json.loads, help="JSON: of variants, why a measurement is missing"
    )
    parser.add_argument("--results", required=True, type=Path, help="folder with a folder for each variant")
    parser.add_argument("--data-report", required=True, type=Path, help="report.json of download_mmlu")
    parser.add_argument("--contamination", required=True, type=Path, help="JSON of check_contamination")
    parser.add_argument("--costs", required=True, type=Path, help="costs.json of report_costs")
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--csv", required=True, type=Path)
    arguments = parser.parse_args()
    tasks = dict(task.split("=") for task in arguments.tasks)
    measured = measurements.of_names(arguments.measured, arguments.questions, tasks)
    found = {
        "model": arguments.model,
        "data": files.read_json(arguments.data_report),
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
        "costs": files.read_json(arguments.costs),
        "source": {key: str(getattr(arguments, key)) for key in ("data_report", "contamination", "costs")},
    }
    with files.whole(arguments.csv) as unfinished:
        tables.flat(found["variants"], measured).to_csv(unfinished, index=False)
    files.write_json(arguments.json, found)
    for title, table in tables.printed(found, measured).items():
        print(f"{title}\n{table.to_string(index=False, float_format='{:.4g}'.format, na_rep='')}\n")


if __name__ == "__main__":
    errors.run(main)
