"""Sum up what each stage took, from Snakemake's benchmark records: jobs, hours, GPU-hours, peak memory.

A record holds the job that succeeded; attempts that failed or were preempted are only in the cluster's accounting.

    python scripts/report_costs.py --records benchmarks/*/demo*.tsv --gpu-stages finetune evaluate_mmlu \\
        --json results/demo/costs.json --csv results/demo/costs.csv
"""

import argparse
from pathlib import Path

import pandas as pd

from int4_qat import errors, files
from int4_qat.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", required=True, nargs="+", type=Path, help="benchmarks/<stage>/<job>.tsv")
    parser.add_argument("--gpu-stages", nargs="*", default=[], help="stages whose jobs hold one GPU each")
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--csv", required=True, type=Path)
    arguments = parser.parse_args()
    stages = sum_up([read_record(path) for path in arguments.records], arguments.gpu_stages)
    total = {name: float(stages[name].sum()) for name in ("hours", "gpu_hours")}
    with files.whole(arguments.csv) as unfinished:
        stages.to_csv(unfinished, index=False)
    print(stages.to_string(index=False, float_format="{:.3f}".format))
    print(f"total: {total['hours']:.3f} hours of jobs, {total['gpu_hours']:.3f} GPU-hours")
    files.write_json(arguments.json, {"stages": stages.to_dict(orient="records"), "total": total})


def read_record(path: Path) -> dict:
    """Stage, seconds and peak resident gigabytes of one job."""
    try:
        record = pd.read_csv(path, sep="\t").iloc[-1]
        # Snakemake writes NA for a job that was over before it was looked at.
        return {"stage": path.parent.name, "seconds": float(record["s"]), "peak_gb": float(record["max_rss"]) / 1e3}
    except (OSError, KeyError, ValueError, IndexError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: expected a benchmark record of Snakemake ({error})") from None


def sum_up(jobs: list[dict], gpu_stages: list[str]) -> pd.DataFrame:
    """A row a stage, in the order in which they first come: jobs, hours of all its jobs, GPU-hours, peak memory."""
    by_stage = pd.DataFrame(jobs).groupby("stage", sort=False)
    hours = by_stage["seconds"].sum() / 3600
    table = pd.DataFrame({"jobs": by_stage.size(), "hours": hours, "peak_gb": by_stage["peak_gb"].max().fillna(0.0)})
    table.insert(2, "gpu_hours", hours.where(hours.index.isin(gpu_stages), 0.0))
    return table.reset_index()


if __name__ == "__main__":
    errors.run(main)
