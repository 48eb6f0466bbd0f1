"""Measure evaluate_mmlu's engines side by side: the same scores, time, and peak memory, on real MMLU questions.

The model is an untrained Gemma 3 of 4 layers with Gemma's own vocabulary of 262,144 words.

    MMLU_DIR=/data/mmlu python tests/bench_mmlu.py
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import Gemma3ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import make_standin
from int4_qat import mmlu_harness, standin

ROOT = Path(__file__).parents[1]
VOCABULARY = 262_144
LIMIT, ROUNDS = 4, 3


def main() -> None:
    source = os.environ.get("MMLU_DIR") or sys.exit("MMLU_DIR: expected a folder with MMLU")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run("download_mmlu", "--source", source, "--output", folder / "mmlu")
        model = write_model(folder)
        for fewshot in (0, 5):
            compare(model, folder, fewshot)


def write_model(folder: Path) -> Path:
    """An untrained stand-in with a large vocabulary, and the tokenizer of the demo's."""
    torch.manual_seed(0)
    facts = standin.invent_families(4, 10, random.Random(0))
    questions = standin.ask(facts, mmlu_harness.subjects(), {"auxiliary_train": 100, "test": 57}, seed=1)
    tokenizer = make_standin.make_tokenizer(questions)
    small = make_standin.make_model(len(tokenizer))
    config = small.config
    config.text_config.vocab_size = VOCABULARY
    make_standin.write_model(Gemma3ForConditionalGeneration(config), tokenizer, folder / "model")
    return folder / "model"


def compare(model: Path, folder: Path, fewshot: int) -> None:
    figures, tables = {"stock": [], "last_position": []}, {}
    for _ in range(ROUNDS):
        for engine in figures:
            samples = folder / f"{engine}.parquet"
            options = ["--checkpoint", model, "--mmlu", folder / "mmlu", "--dtype", "float32", "--engine", engine]
            options += ["--num-fewshot", fewshot, "--batch-size", 8, "--limit", LIMIT, "--samples", samples]
            figures[engine].append(run("evaluate_mmlu", *options, "--output", folder / "report.json"))
            tables[engine] = pd.read_parquet(samples)
    medians = {engine: pd.DataFrame(rows).median() for engine, rows in figures.items()}
    difference = (tables["stock"].filter(like="log_") - tables["last_position"].filter(like="log_")).abs().max().max()
    same = (tables["stock"]["prediction"] == tables["last_position"]["prediction"]).sum()
    stock, ours = medians["stock"], medians["last_position"]
    print(
        f"{fewshot} examples, {len(tables['stock'])} questions, {same} same predictions, scores within {difference:.1e}"
    )
    for name, unit in (("seconds", "s"), ("gb", "GB at most")):
        print(f"  {stock[name]:.1f} {unit} against {ours[name]:.1f}: {stock[name] / ours[name]:.1f} x")


def run(program: str, *arguments: object) -> dict:
    """Seconds and peak resident gigabytes of a program."""
    command = [sys.executable, str(ROOT / "scripts" / f"{program}.py"), *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(error)
    return {"seconds": time.perf_counter() - start, "gb": usage.ru_maxrss * 1024 / 1e9}


if __name__ == "__main__":
    main()
