"""Measure how the time of a dry run grows with the number of jobs, for the table of docs/dry-run.md: `make bench`.

Each config is config.yaml with more models and arms. Their sources are on the Hub, so that no input exists yet. The
figures are medians of three dry runs, including the start of Python; processor seconds do not count other work.

    python tests/bench/bench_dry_run.py
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SIZES = [(1, 2), (2, 4), (4, 8), (8, 8), (8, 16)]
ROUNDS = 3


def main() -> None:
    print("| models | arms | jobs | seconds | processor seconds |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for models, arms in SIZES:
            path = Path(folder) / "config.yaml"
            path.write_text(yaml.safe_dump(config(models, arms)))
            jobs, wall, processor = map(statistics.median, zip(*(dry_run(path) for _ in range(ROUNDS)), strict=True))
            print(f"| {models} | {arms} | {jobs:,} | {wall:.1f} | {processor:.1f} |", flush=True)


def config(models: int, arms: int) -> dict:
    """Return the default config with the given numbers of models and arms, every arm measured in both precisions."""
    default = yaml.safe_load((ROOT / "config.yaml").read_text())
    (source,) = default["models"].values()
    names = [f"arm{index}" for index in range(arms)]
    default["models"] = {f"model{index}": source for index in range(models)}
    default["finetune"]["arms"] = {name: {"quantization": "int4", "seed": index} for index, name in enumerate(names)}
    default["variants"] = [f"{weights}-{precision}" for weights in ["base", *names] for precision in ["bf16", "int4"]]
    default["publish"]["variant"] = "arm0-int4"
    default["plots"]["colours"] = {}
    return default


def dry_run(path: Path) -> tuple[int, float, float]:
    """Return the number of jobs, the seconds and the processor seconds of a dry run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--configfile", path]
    command += ["--directory", path.parent, "--dry-run"]
    wall, processor = time.perf_counter(), processor_seconds()
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    wall, processor = time.perf_counter() - wall, processor_seconds() - processor
    return int(re.search(r"^total +(\d+)$", result.stdout, re.MULTILINE)[1]), wall, processor


def processor_seconds() -> float:
    """Return the processor seconds of all child processes so far."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
