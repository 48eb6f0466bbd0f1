"""Ask a multimodal checkpoint about charts: run lmms-eval's chartqa by `accelerate launch` as on the card, offline.

An answer is right if it is within 5% of a number, or equal letter by letter. For a quantized folder, lmms-eval gets a
copy in bfloat16 with the same weights, for which TMPDIR must have room. lmms-eval's log, its own JSON and its answers
stay in --lmms-runs. lmms-eval ends with exit code 0 whatever happens, so its JSON decides whether it succeeded. The
output is lmms-eval's figures, and a table with one row per question, from which the figures must follow.

    python scripts/evaluate_chartqa.py --checkpoint results/demo/qat-int4/checkpoint --model gemma3 \\
        --dataset resources/datasets/chartqa --batch-size 32 --device cuda --lmms-runs results/demo/qat-int4/lmms \\
        --output results/demo/qat-int4/chartqa.json --samples results/demo/qat-int4/chartqa_samples.parquet
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference, processes
from int4_qat.results import chartqa_figures
from int4_qat.results.schema.chartqa import ChartQA, Figures
from int4_qat.system import devices, errors, files, scratch
from int4_qat.system.errors import InputError

DATASET = "lmms-lab-encoder/ChartQA"  # in lmms-eval's task; a folder of that name in its working folder has priority
FIGURES = {
    "relaxed_overall": "relaxed_overall",
    "human": "relaxed_human_split",
    "augmented": "relaxed_augmented_split",
}
RESULTS, SAMPLES = "chartqa_results.json", "chartqa_samples.jsonl"
KEPT = {"*_samples_chartqa.jsonl": SAMPLES, "*_results.json": RESULTS}
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")  # withheld, since lmms-eval writes them to its log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--model", required=True, help="lmms-eval's name of the model's class, such as gemma3")
    parser.add_argument("--dataset", required=True, type=Path, help="folder with data/test-*.parquet")
    parser.add_argument("--limit", type=int, help="number of questions, counted from the first; all if omitted")
    parser.add_argument("--batch-size", required=True, type=int, help="number of questions asked at once")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--lmms-runs", required=True, type=Path, help="folder for lmms-eval's log, JSON and answers")
    parser.add_argument("--time-limit", default=14_400, type=float, help="seconds allowed for lmms-eval")
    parser.add_argument("--output", required=True, type=Path, help="path of chartqa.json")
    parser.add_argument("--samples", required=True, type=Path, help="parquet file with one row per question")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    results = run_lmms_eval(arguments)
    report = make_report(arguments, results)
    samples = read_samples(arguments.lmms_runs / SAMPLES)
    for misfit in chartqa_figures.misfits(samples, report):
        raise InputError(f"{arguments.lmms_runs / SAMPLES}: {misfit}")
    with files.whole(arguments.samples) as unfinished:
        samples.to_parquet(unfinished, index=False)
    files.write_json(arguments.output, report)
    print(f"relaxed accuracy {report['relaxed_overall']:.4f} on {report['questions']} questions")


def run_lmms_eval(arguments: argparse.Namespace) -> dict:
    """Return lmms-eval's JSON; raise InputError with its last log lines if it wrote none."""
    log = arguments.lmms_runs / "chartqa.log"
    for kept in KEPT.values():
        (arguments.lmms_runs / kept).unlink(missing_ok=True)
    with (
        with_floats(arguments.checkpoint) as checkpoint,
        scratch.folder() as folder,
    ):
        files.link(arguments.dataset, folder / DATASET)
        environment = {name: value for name, value in os.environ.items() if name not in TOKENS}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
        processes.run(
            "lmms-eval",
            "accelerate.commands.launch",
            command_words(arguments, checkpoint.absolute(), folder / "output"),
            log,
            arguments.time_limit,
            environment=environment,
            folder=folder,
        )
        for pattern, kept in KEPT.items():
            written = sorted((folder / "output").rglob(pattern))
            if not written:
                raise InputError(f"lmms-eval: expected a file {kept}, found none; {processes.last_lines(log)}")
            shutil.copyfile(written[-1], arguments.lmms_runs / kept)
    return files.read_json(arguments.lmms_runs / RESULTS)


@contextmanager
def with_floats(checkpoint: Path) -> Iterator[Path]:
    """Yield a folder that lmms-eval can load: for a quantized one, a copy with the same weights in bfloat16."""
    if not inference.is_int4(checkpoint):
        with scratch.plain(checkpoint) as path:
            yield path
        return
    with scratch.folder() as folder:
        # The copy keeps the modules' names, since mapping back to the file's names goes through torchao. The model is
        # released at once, since lmms-eval needs the memory.
        inference.load_model(checkpoint, torch.bfloat16, "cpu").save_pretrained(folder, save_original_format=False)
        architecture.copy_companions(checkpoint, folder)
        yield folder


def command_words(arguments: argparse.Namespace, checkpoint: Path, output: Path) -> list:
    """Return the card's command line, for one device, since a job holds one GPU."""
    device = f"device={arguments.device},device_map={arguments.device}"
    return [
        *("--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"),
        *(["--cpu"] if arguments.device == "cpu" else []),
        *("-m", "lmms_eval", "--model", arguments.model),
        *("--model_args", f"pretrained={checkpoint},{device},trust_remote_code=False"),
        *("--tasks", "chartqa", "--batch_size", arguments.batch_size, "--output_path", output, "--log_samples"),
        *(["--limit", arguments.limit] if arguments.limit else []),
    ]


def make_report(arguments: argparse.Namespace, results: dict) -> ChartQA:
    """Return the content of chartqa.json; a figure without questions is None."""
    scores = results["results"]["chartqa"]
    found = {name: figure(scores, metric) for name, metric in FIGURES.items()}
    return ChartQA(
        **{name: value for name, (value, _) in found.items()},
        stderr=Figures(**{name: stderr for name, (_, stderr) in found.items()}),
        questions=results["n-samples"]["chartqa"]["effective"],
        dequantized=inference.is_int4(arguments.checkpoint),
        settings={
            "task": "chartqa",
            "model": arguments.model,
            "limit": arguments.limit,
            "batch_size": arguments.batch_size,
            "dtype": "bfloat16",
            "device": devices.name(arguments.device),
        },
        versions={name: version(name) for name in ("lmms-eval", "accelerate", "transformers", "torch", "torchao")},
    )


def read_samples(path: Path) -> pd.DataFrame:
    """Return the table of samples from lmms-eval's own file, in which a metric's name tells a question's type."""
    rows = []
    with path.open(encoding="utf-8") as lines:
        for sample in map(json.loads, lines):
            types = [name for name in chartqa_figures.TYPES if FIGURES[name] in sample]
            if len(types) != 1:
                raise InputError(f"{path}: question {sample['doc_id']}: expected human or augmented, found {types}")
            rows.append({"index": sample["doc_id"], "type": types[0], "correct": sample[FIGURES["relaxed_overall"]]})
    return chartqa_figures.table(rows)


def figure(scores: dict, metric: str) -> tuple[float | None, float | None]:
    """Return the value and the standard error of one of lmms-eval's metrics; None for one that it does not give."""
    value, stderr = scores.get(f"{metric},none"), scores.get(f"{metric}_stderr,none")
    return (value if isinstance(value, float) else None), (stderr if isinstance(stderr, float) else None)


if __name__ == "__main__":
    errors.run(main)
