"""Sum up what each stage took: jobs, hours, GPU-hours, peak memory, and hours of attempts that came to nothing.

Snakemake's benchmark records hold the jobs that succeeded. Attempts that failed or were preempted, and the memory that
they took, are only in Slurm's accounting. They are looked up by the ids of the logs that Slurm's plugin keeps, and are
null where nothing ran on Slurm or Slurm keeps no accounts.

    python scripts/report_costs.py --records benchmarks/*/demo*.tsv --gpu-stages finetune=2 evaluate_mmlu=1 \\
        --json results/demo/costs.json --csv results/demo/costs.csv
"""

import argparse
import io
import subprocess
from pathlib import Path

import pandas as pd

from int4_qat.system import errors, files
from int4_qat.system.errors import InputError

LIMIT = 60  # seconds; sacct may hang where there is no database
LIVING = ("COMPLETED", "COMPLETING", "RUNNING", "PENDING", "SUSPENDED")  # the accounts lag behind by seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", required=True, nargs="+", type=Path, help="records, benchmarks/<stage>/<job>.tsv")
    parser.add_argument("--gpu-stages", nargs="*", default=[], metavar="STAGE=GPUS", help="number of GPUs per job")
    parser.add_argument(
        "--slurm-logs", type=Path, default=".snakemake/slurm_logs", help="logs of Snakemake's Slurm plugin"
    )
    parser.add_argument("--json", required=True, type=Path, help="JSON file for the costs")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file for the costs")
    arguments = parser.parse_args()
    gpus = {stage: int(count) for stage, count in (word.split("=") for word in arguments.gpu_stages)}
    stages = sum_up([read_record(path) for path in arguments.records], gpus)
    records = {job: path for path in arguments.records for job in slurm_jobs(path, arguments.slurm_logs)}
    accounts = read_accounts(sorted(records))
    if accounts is not None:
        stages = add_accounts(stages, last_runs(accounts.assign(record=accounts["job"].map(records))))
    columns = [name for name in stages if name.endswith("hours")]
    total = {"unfinished_hours": None} | {name: float(stages[name].sum()) for name in columns}
    with files.whole(arguments.csv) as unfinished:
        stages.to_csv(unfinished, index=False)
    print(stages.to_string(index=False, float_format="{:.3f}".format))
    print(f"total: {total['hours']:.3f} hours of jobs, {total['gpu_hours']:.3f} GPU-hours")
    if accounts is not None:
        print(f"in addition: {total['unfinished_hours']:.3f} hours of attempts that failed or were preempted")
    known = stages.astype(object).where(stages.notna(), None)
    files.write_json(arguments.json, {"stages": known.to_dict(orient="records"), "total": total})


def read_record(path: Path) -> dict:
    """Return the stage, seconds and peak resident gigabytes of one job."""
    try:
        record = pd.read_csv(path, sep="\t").iloc[-1]
        # max_rss is in MiB; Snakemake writes NA for a job that ended before it was sampled.
        peak = float(record["max_rss"]) * 2**20 / 1e9
        return {"stage": path.parent.name, "seconds": float(record["s"]), "peak_gb": peak}
    except (OSError, KeyError, ValueError, IndexError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: expected a benchmark record of Snakemake ({error})") from None


def sum_up(jobs: list[dict], gpus: dict[str, int]) -> pd.DataFrame:
    """Return one row per stage, in the order in which stages first occur: jobs, hours, GPU-hours, peak memory.

    gpus gives the number of GPUs that each job of a stage holds.
    """
    by_stage = pd.DataFrame(jobs).groupby("stage", sort=False)
    hours = by_stage["seconds"].sum() / 3600
    table = pd.DataFrame({"jobs": by_stage.size(), "hours": hours, "peak_gb": by_stage["peak_gb"].max()})
    table.insert(2, "gpu_hours", [hours[stage] * gpus.get(stage, 0) for stage in hours.index])
    return table.reset_index()


def slurm_jobs(record: Path, logs: Path) -> list[str]:
    """Return the ids of a job's attempts on Slurm: the plugin's logs are in rule_<stage>/<wildcards>/<id>.log."""
    folder = logs / f"rule_{record.parent.name}"
    return [log.stem for log in (*folder.glob("*.log"), *(folder / record.stem).glob("*.log"))]


def read_accounts(ids: list[str]) -> pd.DataFrame | None:
    """Return one row per attempt: job, state, seconds, peak_gb of its steps; None if Slurm has no accounts of them."""
    if not ids:
        return None
    fields = "JobIDRaw,State,ElapsedRaw,MaxRSS"
    command = ["sacct", f"--jobs={','.join(ids)}", "--duplicates", "--noheader", "--parsable2", f"--format={fields}"]
    try:
        options = {"capture_output": True, "text": True, "check": True, "timeout": LIMIT}
        shown = subprocess.run([*command, "--units=K"], **options).stdout
    except subprocess.CalledProcessError as error:
        return uncounted(error.stderr.strip().rpartition("\n")[2] or str(error))
    except (OSError, subprocess.TimeoutExpired) as error:
        return uncounted(str(error))
    if not shown.strip():
        return uncounted("sacct knows none of the jobs")
    steps = pd.read_csv(io.StringIO(shown), sep="|", names=["step", "state", "seconds", "memory"], dtype={"step": str})
    steps["job"] = steps["step"].str.partition(".")[0]
    steps["peak_gb"] = pd.to_numeric(steps["memory"].astype(str).str.removesuffix("K")) * 1024 / 1e9
    peaks = steps.groupby("job")["peak_gb"].max()
    attempts = steps[~steps["step"].str.contains(".", regex=False)]
    return attempts[["job", "state", "seconds"]].assign(peak_gb=attempts["job"].map(peaks))


def uncounted(reason: str) -> None:
    """Print that there are no accounts, and why."""
    print(f"failed and preempted attempts are not counted, since Slurm has no accounts of them: {reason}")


def last_runs(attempts: pd.DataFrame) -> pd.DataFrame:
    """Return each record's attempts since its job's previous success, as the folder's logs hold older runs too."""
    attempts = attempts.sort_values("job", key=lambda jobs: jobs.astype(int), kind="stable")
    succeeded = (attempts["state"] == "COMPLETED").astype(int)
    successes_before = succeeded.groupby(attempts["record"]).cumsum() - succeeded
    last = successes_before == successes_before.groupby(attempts["record"]).transform("max")
    return attempts[last].assign(stage=attempts["record"].map(lambda path: path.parent.name))


def add_accounts(stages: pd.DataFrame, attempts: pd.DataFrame) -> pd.DataFrame:
    """Return the stages with the hours of attempts that came to nothing, and the peak memory over all attempts."""
    lost = attempts[~attempts["state"].isin(LIVING)].groupby("stage")["seconds"].sum() / 3600
    peaks = stages["stage"].map(attempts.groupby("stage")["peak_gb"].max())
    return stages.assign(
        unfinished_hours=stages["stage"].map(lost).fillna(0.0),
        peak_gb=pd.concat([stages["peak_gb"], peaks], axis=1).max(axis=1),  # or the one that is known
    )


if __name__ == "__main__":
    errors.run(main)
