"""Measure recipes for int4 on a model: what each costs, what it takes, and what it wins back of what rounding costs.

Each variant is made and measured by the programs of scripts/, as the rules do it: calibrate, quantize,
evaluate_divergence on held-out texts, evaluate_mmlu. What is there already is not made again. The table goes to
--folder as recipes.md and is printed; intervals are of 95%, paired, over windows and questions.

    python scripts/download_mmlu.py --source /data/mmlu --output /data/mmlu_parquet
    python tests/bench/bench_recipes.py --model models/gemma-3-270m --mmlu /data/mmlu_parquet \\
        --calibration /data/text/wikitext2_valid.txt \\
        --held-out /data/text/wikitext2_test.txt /data/text/gsm8k.txt --folder /tmp/recipes/gemma-3-270m
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.config import variants
from int4_qat.quantization import schemes
from int4_qat.results import measured_files, measurements, metrics
from int4_qat.results.measurements import Measurement
from int4_qat.results.metrics import Metric, Scores
from int4_qat.system import devices, files

ROOT = Path(__file__).parents[2]
ZERO_POINTS = {"integer": schemes.INTEGER, "float": schemes.FLOAT, "symmetric": None}
RECIPES = ("rtn", "awq", "gptq")
CONTEXT = 1024
PEAK = re.compile(r"peak GPU memory ([\d.]+) GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder in bf16")
    parser.add_argument("--mmlu", required=True, type=Path, help="folder of download_mmlu")
    parser.add_argument(
        "--calibration", required=True, type=Path, nargs="*", help="texts beside the training questions"
    )
    parser.add_argument("--held-out", required=True, type=Path, nargs="+", help="texts to measure on")
    parser.add_argument("--folder", required=True, type=Path, help="for checkpoints, measurements and the table")
    parser.add_argument("--zero-points", nargs="+", default=["integer", "float"], choices=list(ZERO_POINTS))
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--group-size", type=int, default=128, choices=schemes.GROUP_SIZES)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the calibration")
    parser.add_argument("--limit", type=int, help="questions of each subject, and a thousand tokens of each text")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", help="bfloat16 on a GPU, float32 on a CPU if left out")
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or {"cuda": "bfloat16", "cpu": "float32"}[arguments.device]
    if arguments.device == "cuda":  # the processes share the one GPU, one after the other
        os.environ |= {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"), devices.CLAIMED: "0"}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    read_base(arguments)
    wanted = list(named(arguments))
    for name, method, zero_point, seed in tqdm(wanted, desc="recipes", unit=" variants"):
        make(arguments, name, method, zero_point, seed)
        measure(arguments, name)
        (arguments.folder / "recipes.md").write_text(table(arguments), encoding="utf-8")
    print(table(arguments))


def named(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Yield name, method, zero point and seed of each variant; rounding draws nothing."""
    for zero_point in arguments.zero_points:
        for method in arguments.methods:
            for seed in arguments.seeds if method != "rtn" else arguments.seeds[:1]:
                suffix = f"_{seed}" if seed != arguments.seeds[0] else ""
                yield f"base-{method}_{zero_point}{suffix}", method, zero_point, seed


def run(name: str, folder: Path, *words: object) -> None:
    """Run a program of scripts/; its log and its seconds go into a folder. End with its last line if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with (folder / f"{name}.log").open("w") as stream:
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, words)]
        result = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT)
    if result.returncode:
        sys.exit(f"{stream.name}: {Path(stream.name).read_text().splitlines()[-1]}")
    files.write_json(folder / f"{name}.json", {"seconds": time.perf_counter() - start})


def read_base(arguments: argparse.Namespace) -> None:
    """Format the questions, and let the base in bf16 read the texts and answer."""
    folder, model, questions = arguments.folder / variants.BASELINE, arguments.model, arguments.folder / "train.parquet"
    if not questions.exists():
        source = ["--mmlu", arguments.mmlu / "auxiliary_train.parquet", "--tokenizer", model]
        run("format_mmlu", arguments.folder, *source, "--output", questions)
    if not (folder / measurements.DIVERGENCE.file).exists():
        limit = ["--limit", 1000 * arguments.limit] if arguments.limit else []
        words = ["--context", CONTEXT, *limit, "--dtype", arguments.dtype, "--output", folder / "states"]
        read = ["--checkpoint", model, "--texts", *arguments.held_out]
        run("record_hidden_states", folder, *read, *words, *places(arguments, folder))
    answer(arguments, model, folder)


def make(arguments: argparse.Namespace, name: str, method: str, zero_point: str, seed: int) -> None:
    """Calibrate, if the method does, and quantize."""
    folder, checkpoint = arguments.folder / name, arguments.model
    if (folder / "checkpoint").exists():
        return
    scheme = json.dumps(schemes.int4(arguments.group_size, ZERO_POINTS[zero_point]).words)
    if method != "rtn":
        checkpoint = folder / "calibrated"
        texts = ["--texts", arguments.folder / "train.parquet", *arguments.calibration]
        windows = ["--samples", arguments.samples, "--length", arguments.length, "--batch-size", 8, "--seed", seed]
        where = ["--dtype", arguments.dtype, "--device", arguments.device, "--output", checkpoint]
        words = ["--checkpoint", arguments.model, "--scheme", scheme, "--method", method]
        run("calibrate", folder, *words, *texts, *windows, *where)
    words = ["--scheme", scheme, "--ignore", "--method", method, "--format", "torchao-plain"]
    run("quantize", folder, "--checkpoint", checkpoint, *words, "--output", folder / "checkpoint")


def measure(arguments: argparse.Namespace, name: str) -> None:
    """Compare a variant with the base, and ask it."""
    folder, model, states = arguments.folder / name, arguments.model, arguments.folder / variants.BASELINE / "states"
    if not (folder / measurements.DIVERGENCE.file).exists():
        known = ["--base", model, "--base-states", states, "--own", model, "--own-states", states]
        words = ["--checkpoint", folder / "checkpoint", *known, *places(arguments, folder)]
        run("evaluate_divergence", folder, *words)
    answer(arguments, folder / "checkpoint", folder)


def places(arguments: argparse.Namespace, folder: Path) -> list[object]:
    """Return the words for where the divergence is measured, and written."""
    report, samples = (folder / name for name in measured_files.files_of(measurements.DIVERGENCE))
    return ["--device", arguments.device, "--report", report, "--samples", samples]


def answer(arguments: argparse.Namespace, checkpoint: Path, folder: Path) -> None:
    """Let a checkpoint answer MMLU."""
    report, samples = (folder / name for name in measured_files.files_of(measurements.MMLU))
    if report.exists():
        return
    shard = ["--output", folder / "shard.json", "--samples", folder / "shard.parquet"]
    limit = ["--limit", arguments.limit] if arguments.limit else []
    words = ["--mmlu", arguments.mmlu, "--engine", "last_position", "--num-fewshot", 0, "--batch-size", 8, *limit]
    where = ["--dtype", arguments.dtype, "--device", arguments.device]
    run("evaluate_mmlu", folder, "--checkpoint", checkpoint, *words, *where, *shard)
    gathered = ["--shard-reports", folder / "shard.json", "--shard-samples", folder / "shard.parquet"]
    run("gather_mmlu", folder, *gathered, "--output", report, "--samples", samples)


def table(arguments: argparse.Namespace) -> str:
    """Return what was measured so far, in Markdown."""
    texts = [path.stem for path in arguments.held_out]
    heads = ["variant", *(f"{text}: {head}" for text in texts for head in ("KL", "back", "nats"))]
    heads += ["MMLU", "back", "calibration", "peak GPU memory"]
    made = [entry for entry in named(arguments) if (arguments.folder / entry[0] / measurements.MMLU.file).exists()]
    names = [variants.BASELINE, *(name for name, *_ in made)]
    rounded = {name: f"base-rtn_{zero_point}" for name, _, zero_point, _ in made}
    every = [
        *of_measurement(arguments, measurements.DIVERGENCE, names),
        *of_measurement(arguments, measurements.MMLU, names),
    ]
    by_name = {metric.name: (metric, metrics.scores(metric)) for metric in every}

    def row(name: str) -> list[str]:
        cells = [name.removeprefix("base-")]
        for text in texts:
            cells += of_metric(*by_name[f"{text}_kl"], name, rounded, "{:.4f}")
            cells.append(f"{-by_name[f'{text}_perplexity'][1].plain[name]:.4f}")
        return [*cells, *of_metric(*by_name["mmlu"], name, rounded, "{:.2%}"), *costs(arguments.folder / name)]

    lines = [heads, ["---"] * len(heads), *map(row, names)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def of_measurement(arguments: argparse.Namespace, one: Measurement, names: list[str]) -> list[Metric]:
    """Return the metrics of a measurement."""
    tables = {name: measured_files.read_samples(arguments.folder / name, one) for name in names}
    return one.samples.metrics(one.name, tables, measured_files.read(arguments.folder / names[0], one))


def of_metric(metric: Metric, found: Scores, name: str, rounded: dict[str, str], form: str) -> list[str]:
    """Return a value and what it won back of what rounding costs, each with its interval."""
    value, ends = metrics.value_of(metric, found.plain[name]), metrics.interval_of(metric, found.resampled[name])
    cell = f"{form.format(value)} [{', '.join(map(form.format, ends))}]"
    if rounded.get(name, name) == name:
        return [cell, ""]
    back = metrics.recovery_of(metric, found, name, rounded[name])
    if not back["recovered_resolved"]:
        return [cell, "not resolved"]
    low, high = back["recovered_ci95"]
    return [cell, f"{back['recovered']:.0%} [{low:.0%}, {high:.0%}]"]


def costs(folder: Path) -> list[str]:
    """Return the seconds and the GPU memory of a variant's calibration."""
    if not (folder / "calibrate.json").exists():
        return ["", ""]
    peak = PEAK.search((folder / "calibrate.log").read_text())
    seconds = files.read_json(folder / "calibrate.json")["seconds"]
    return [f"{seconds:.0f} s", f"{peak[1]} GB" if peak else ""]


if __name__ == "__main__":
    main()
