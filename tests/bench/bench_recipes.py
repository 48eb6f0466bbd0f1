"""Measure int4 recipes on a model: the quality that each loses, its cost, and how much of rounding's loss it recovers.

The programs of scripts/ produce and measure each variant as the rules do: calibrate, finetune, merge, quantize,
evaluate_divergence on held-out texts, and evaluate_mmlu. They run in processes that share the seconds of their imports,
and existing results are not recomputed. --arms is a YAML of trainings by name, each with the settings in which it
differs from config.yaml. A training starts at base-<start> or at the base, and runs once for each seed. The table is
printed and written to --folder as recipes.md. Intervals are of 95%, paired, over windows and questions, and over seeds
if there are several.

    python scripts/download_mmlu.py --source /data/mmlu --output /data/mmlu_parquet
    python tests/bench/bench_recipes.py --model models/gemma-3-270m --mmlu /data/mmlu_parquet \\
        --general /data/text/wikitext2_valid.txt --arms tests/bench/arms.yaml --seeds 0 1 2 \\
        --held-out /data/text/wikitext2_test.txt /data/text/gsm8k.txt --folder /tmp/recipes/gemma-3-270m
"""

import argparse
import importlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# The GPU is hidden until a process has been forked: libraries start CUDA on import, and CUDA does not survive a fork.
os.environ |= {"BENCH_GPU": os.environ.get("CUDA_VISIBLE_DEVICES", "0"), "CUDA_VISIBLE_DEVICES": ""}
os.environ |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import pandas as pd
import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.config import variants
from int4_qat.config.calibration import QUESTIONS
from int4_qat.quantization import schemes
from int4_qat.results import measured_files, measurements, metrics, statistics
from int4_qat.results.measurements import Measurement
from int4_qat.results.metrics import Metric, Scores
from int4_qat.system import devices, files
from int4_qat.tokenizer import tokenization, turns

ROOT = Path(__file__).parents[2]
ZERO_POINTS = {"integer": schemes.INTEGER, "float": schemes.FLOAT, "symmetric": None}
ROUNDED, BEST = "rtn", "gptq"
METHODS = (ROUNDED, "awq", BEST)
CONTEXT = 1024
PEAK = re.compile(r"peak GPU memory ([\d.]+) GB")
NOT_OF_A_TRAINING = ("start", "report_to", "arms")


class Variant(NamedTuple):
    """A recipe with a seed: a method that finds codes, or a training."""

    recipe: str  # the method or the arm
    zero_point: str
    seed: int
    changes: dict | None  # an arm's differences from config.yaml

    @property
    def name(self) -> str:
        return f"{self.group}_{self.seed}"

    @property
    def group(self) -> str:
        """Return the name that the seeds of a recipe share."""
        return f"{self.recipe}_{self.zero_point}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with the model, in bf16")
    parser.add_argument("--mmlu", required=True, type=Path, help="folder written by download_mmlu")
    parser.add_argument("--general", type=Path, nargs="*", default=[], help="general texts to train and calibrate on")
    parser.add_argument("--held-out", required=True, type=Path, nargs="+", help="held-out texts to measure on")
    parser.add_argument("--folder", required=True, type=Path, help="folder for checkpoints, measurements and the table")
    parser.add_argument(
        "--zero-points",
        nargs="+",
        default=["integer"],
        choices=list(ZERO_POINTS),
        help="kinds of zero points to measure",
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="methods to measure")
    parser.add_argument("--arms", type=Path, help="YAML file with the settings of each training, by name")
    parser.add_argument("--group-size", type=int, default=128, choices=schemes.GROUP_SIZES, help="weights per group")
    parser.add_argument("--samples", type=int, default=128, help="number of windows to calibrate on")
    parser.add_argument("--length", type=int, default=1024, help="number of tokens per window, bos included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the calibrations and trainings")
    parser.add_argument("--limit", type=int, help="number of questions per subject, thousands of tokens per text")
    parser.add_argument("--batch-size", type=int, default=8, help="number of questions that stock reads at once")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--dtype", help="number format of the model; bfloat16 or, on a CPU, float32 by default")
    arguments = parser.parse_args()
    arguments.dtype = arguments.dtype or {"cuda": "bfloat16", "cpu": "float32"}[arguments.device]
    if arguments.arms:
        importlib.import_module("int4_qat.training.backends.transformers")  # once, since all trainings load it
    wanted = list(wanted_variants(arguments))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    bench.read_base()
    made = []
    for variant in tqdm(wanted, desc="recipes", unit=" variants"):
        bench.make(variant)
        bench.measure(variant)
        made.append(variant)
        (arguments.folder / "recipes.md").write_text(table(arguments, made), encoding="utf-8")
    print(table(arguments, made))


def wanted_variants(arguments: argparse.Namespace) -> Iterator[Variant]:
    """Yield the variants to measure; rounding draws no random numbers and so has only one seed."""
    arms = yaml.safe_load(arguments.arms.read_text(encoding="utf-8")) if arguments.arms else {}
    for zero_point in arguments.zero_points:
        for recipe in (*arguments.methods, *arms):
            for seed in arguments.seeds if recipe != ROUNDED else arguments.seeds[:1]:
                yield Variant(recipe, zero_point, seed, arms.get(recipe))


class Bench:
    """A model, with the inputs and the programs that produce and measure its variants."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.base = arguments.folder / variants.BASELINE
        self.questions = arguments.folder / "train.parquet"
        self.texts = {QUESTIONS: self.questions} | {path.stem: path for path in arguments.general}

    def folder(self, variant: Variant) -> Path:
        return self.arguments.folder / variant.name

    def scheme(self, variant: Variant) -> dict:
        return schemes.int4(self.arguments.group_size, ZERO_POINTS[variant.zero_point]).words

    def read_base(self) -> None:
        """Format the questions, record the base's hidden states on the held-out texts, and let the base answer MMLU."""
        arguments, model = self.arguments, self.arguments.model
        if not self.questions.exists():
            source = ["--mmlu", arguments.mmlu / "auxiliary_train.parquet", "--tokenizer", model]
            run("format_mmlu", arguments.folder, *source, "--output", self.questions)
        if not (self.base / measurements.DIVERGENCE.file).exists():
            limit = ["--limit", 1000 * arguments.limit] if arguments.limit else []
            words = ["--context", CONTEXT, *limit, "--dtype", arguments.dtype, "--output", self.base / "states"]
            read = ["--checkpoint", model, "--texts", *arguments.held_out]
            run("record_hidden_states", self.base, *read, *words, *self.places(self.base))
        self.answer(model, self.base)

    def make(self, variant: Variant) -> None:
        """Calibrate or train the variant, if it needs that, and quantize it."""
        folder, checkpoint = self.folder(variant), self.arguments.model
        if (folder / "checkpoint").exists():
            return
        method = variant.recipe if variant.changes is None else ROUNDED
        if variant.changes is not None:
            checkpoint = self.train(variant)
        elif method != ROUNDED:
            checkpoint = self.calibrate(variant)
        words = ["--scheme", json.dumps(self.scheme(variant)), "--ignore", "--method", method]
        output = ["--format", "torchao-plain", "--output", folder / "checkpoint"]
        run("quantize", folder, "--checkpoint", checkpoint, *words, *output)

    def calibrate(self, variant: Variant) -> Path:
        """Return the folder of the model that the variant's method has calibrated."""
        arguments, output = self.arguments, self.folder(variant) / "calibrated"
        if not output.exists():
            windows = ["--samples", arguments.samples, "--length", arguments.length, "--batch-size", 8]
            words = ["--checkpoint", arguments.model, "--scheme", json.dumps(self.scheme(variant))]
            words += ["--method", variant.recipe, "--texts", *self.texts.values(), *windows, "--seed", variant.seed]
            run("calibrate", self.folder(variant), *words, *self.where(), "--output", output)
        return output

    def train(self, variant: Variant) -> Path:
        """Return the folder of a trained and merged model."""
        folder, changes = self.folder(variant), dict(variant.changes)
        method, model = changes.pop("start", None), self.arguments.model
        if method:
            model = self.calibrate(Variant(method, variant.zero_point, self.arguments.seeds[0], None))
        recipe = self.recipe(variant, changes)
        texts = [f"{name}={self.texts[name]}" for name in recipe["texts"]]
        words = ["--model", model, "--base", self.arguments.model, "--texts", *texts, "--recipe", json.dumps(recipe)]
        outputs = ["--checkpoints", folder / "checkpoints", "--adapter", folder / "adapter"]
        outputs += ["--log-table", folder / "training.csv", "--allow-worse", int(recipe["allow_worse"])]
        run("finetune", folder, *words, "--device", self.arguments.device, *outputs)
        adapter = ["--adapter", folder / "adapter", "--output", folder / "merged"]
        run("merge", folder, "--model", model, *adapter)
        return folder / "merged"

    def recipe(self, variant: Variant, changes: dict) -> dict:
        """Return all settings of a training."""
        config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))["finetune"]
        default = {key: value for key, value in config.items() if key not in NOT_OF_A_TRAINING}
        instruction, response = turns.propose(tokenization.load_tokenizer(self.arguments.model))
        given = {"backend": "transformers", "dtype": self.arguments.dtype, "optim": "adamw_torch"}
        given |= {"instruction_part": instruction, "response_part": response, "seed": variant.seed}
        return default | given | {"scheme": self.scheme(variant), "ignore": []} | changes

    def measure(self, variant: Variant) -> None:
        """Compare a variant with the base, and let it answer MMLU."""
        folder, model = self.folder(variant), self.arguments.model
        if not (folder / measurements.DIVERGENCE.file).exists():
            known = ["--base", model, "--own", model]
            states = ["--base-states", self.base / "states", "--own-states", self.base / "states"]
            words = ["--checkpoint", folder / "checkpoint", *known, *states]
            run("evaluate_divergence", folder, *words, *self.places(folder))
        self.answer(folder / "checkpoint", folder)

    def where(self) -> list[object]:
        return ["--dtype", self.arguments.dtype, "--device", self.arguments.device]

    def places(self, folder: Path) -> list[object]:
        """Return the options for the device and the outputs of the divergence."""
        report, samples = (folder / name for name in measured_files.files_of(measurements.DIVERGENCE))
        return ["--device", self.arguments.device, "--report", report, "--samples", samples]

    def answer(self, checkpoint: Path, folder: Path) -> None:
        """Let a checkpoint answer MMLU."""
        report, samples = (folder / name for name in measured_files.files_of(measurements.MMLU))
        if report.exists():
            return
        shard, limit = ["--output", folder / "shard.json", "--samples", folder / "shard.parquet"], self.arguments.limit
        words = ["--mmlu", self.arguments.mmlu, "--engine", "last_position", "--num-fewshot", 0]
        words += ["--batch-size", self.arguments.batch_size, *(["--limit", limit] if limit else [])]
        run("evaluate_mmlu", folder, "--checkpoint", checkpoint, *words, *self.where(), *shard)
        gathered = ["--shard-reports", folder / "shard.json", "--shard-samples", folder / "shard.parquet"]
        run("gather_mmlu", folder, *gathered, "--output", report, "--samples", samples)


def run(name: str, folder: Path, *words: object) -> None:
    """Run a program of scripts/ with its log and seconds in a folder; if it fails, exit with the log's last line."""
    folder.mkdir(parents=True, exist_ok=True)
    program, start = importlib.import_module(name), time.perf_counter()
    process = multiprocessing.get_context("fork").Process(target=call, args=(program, folder / f"{name}.log", words))
    process.start()
    process.join()
    if process.exitcode:
        last = (folder / f"{name}.log").read_text().splitlines()[-1:]
        sys.exit(f"{folder / name}.log: exit code {process.exitcode}: {' '.join(last)}")
    files.write_json(folder / f"{name}.json", {"seconds": time.perf_counter() - start})


def call(program, log: Path, words: tuple[object, ...]) -> None:
    """Call a program's main in this process, with its output in a log."""
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    gpu = os.environ["BENCH_GPU"]  # the processes use it in turn
    os.environ |= {"CUDA_VISIBLE_DEVICES": gpu, devices.CLAIMED: gpu}
    sys.argv = [program.__name__, *map(str, words)]
    program.errors.run(program.main)


def table(arguments: argparse.Namespace, made: list[Variant]) -> str:
    """Return the figures so far in Markdown, with one row per variant and one per recipe with several seeds."""
    texts = [path.stem for path in arguments.held_out]
    names = [variants.BASELINE, *(variant.name for variant in made)]
    every = [
        *of_measurement(arguments, measurements.DIVERGENCE, names),
        *of_measurement(arguments, measurements.MMLU, names),
    ]
    groups = {group: [each.name for each in made if each.group == group] for group in (each.group for each in made)}
    groups = {f"{group}, mean of {len(seeds)} seeds": seeds for group, seeds in groups.items() if len(seeds) > 1}
    found = {metric.name: (metric, with_means(metrics.scores(metric), groups)) for metric in every}
    zero_points = {each.name: each.zero_point for each in made}
    zero_points |= {group: zero_points[seeds[0]] for group, seeds in groups.items()}
    metrics_of_rows = [*(f"{text}_kl" for text in texts), "mmlu"]
    heads = ["variant", *(f"{text}: nats" for text in texts)]
    heads += [f"{name}{head}" for name in metrics_of_rows for head in ("", ": back", f": better than {BEST}")]
    heads += ["seconds", "peak GPU memory"]

    def row(name: str) -> list[str]:
        nats = [f"{-found[f'{text}_perplexity'][1].plain[name]:.4f}" for text in texts]
        references = [f"{method}_{zero_points.get(name)}_{arguments.seeds[0]}" for method in (ROUNDED, BEST)]
        cells = [cell for metric in metrics_of_rows for cell in of_metric(*found[metric], name, *references)]
        return [name, *nats, *cells, *costs(arguments.folder / name)]

    lines = [heads, ["---"] * len(heads), *map(row, [*names, *groups])]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def of_measurement(arguments: argparse.Namespace, one: Measurement, names: list[str]) -> list[Metric]:
    """Return the metrics of a measurement."""
    tables = {name: measured_files.read_samples(arguments.folder / name, one) for name in names}
    return one.samples.metrics(one.name, tables, measured_files.read(arguments.folder / names[0], one))


def with_means(found: Scores, groups: dict[str, list[str]]) -> Scores:
    """Return the scores, with the mean over its seeds added for each group of variants."""
    means = {group: sum(found.plain[name] for name in names) / len(names) for group, names in groups.items()}
    resampled = {
        group: statistics.resample_seeds([found.plain[name] for name in names], found.resampled[names].to_numpy())
        for group, names in groups.items()
    }
    return Scores(found.plain | means, pd.concat([found.resampled, pd.DataFrame(resampled)], axis=1))


def of_metric(metric: Metric, found: Scores, name: str, rounded: str, best: str) -> list[str]:
    """Return the cells of a value, of its recovery of rounding's loss, and of its gain over the best calibration."""
    form = "{:.2%}" if metric.scale.unit == metrics.SHARE.unit else "{:.4f}"
    value, ends = metrics.value_of(metric, found.plain[name]), metrics.interval_of(metric, found.resampled[name])
    cells = [f"{form.format(value)} [{', '.join(map(form.format, ends))}]", "", ""]
    if rounded in found.plain and name not in (rounded, variants.BASELINE):
        back = metrics.recovery_of(metric, found, name, rounded)
        low, high = back["recovered_ci95"] or (0, 0)
        cells[1] = f"{back['recovered']:.0%} [{low:.0%}, {high:.0%}]" if back["recovered_resolved"] else "not resolved"
    if best in found.plain and name not in (best, rounded, variants.BASELINE):
        low, high = statistics.interval(found.resampled[name] - found.resampled[best])
        better = f"{form.format(found.plain[name] - found.plain[best])}"
        cells[2] = f"{better} [{form.format(low)}, {form.format(high)}]"
    return cells


def costs(folder: Path) -> list[str]:
    """Return the seconds and the GPU memory of a variant's calibration or training."""
    if (folder / "finetune.json").exists():
        peak = pd.read_csv(folder / "training.csv")["peak_memory_gb"].max()
        return [f"{files.read_json(folder / 'finetune.json')['seconds']:.0f} s", f"{peak:.1f} GB"]
    if (folder / "calibrate.json").exists():
        peak = PEAK.search((folder / "calibrate.log").read_text())
        seconds = files.read_json(folder / "calibrate.json")["seconds"]
        return [f"{seconds:.0f} s", f"{peak[1]} GB" if peak else ""]
    return ["", ""]


if __name__ == "__main__":
    main()
