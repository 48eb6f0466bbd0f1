"""Compare evaluate_mmlu's engines on real MMLU questions: whether scores are the same, time, and peak memory.

The model is an untrained Gemma 3 of 3 layers with Gemma's vocabulary size. Its tokenizer has every word of the
questions.

    MMLU_DIR=/data/mmlu python tests/bench/bench_mmlu.py
    MMLU_DIR=/data/mmlu python tests/bench/bench_mmlu.py --limit 1 --num-fewshot 5 --rounds 1
    MMLU_DIR=/data/mmlu python tests/bench/bench_mmlu.py --limit 1534 --rounds 1 --vocabulary 65536   # all questions
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import Gemma3ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import make_standin
from int4_qat.data import mmlu
from int4_qat.evaluation import mmlu_harness
from int4_qat.standin import gemma_folder, standin

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=4, help="number of questions per subject; 1534 covers all")
    parser.add_argument("--num-fewshot", type=int, default=0, help="number of examples before each question")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each engine")
    parser.add_argument("--vocabulary", type=int, default=262_144, help="number of tokens in the vocabulary")
    arguments = parser.parse_args()
    source = os.environ.get("MMLU_DIR") or sys.exit("MMLU_DIR: expected a folder with MMLU, found none")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run("download_mmlu", "--source", source, "--output", folder / "mmlu")
        model = write_model(folder, arguments.vocabulary)
        compare(model, folder, arguments)


def write_model(folder: Path, vocabulary: int) -> Path:
    """Write an untrained stand-in with a large vocabulary and a tokenizer of MMLU's words; return its folder."""
    torch.manual_seed(0)
    rows = pd.concat(pd.read_parquet(folder / "mmlu" / f"{split}.parquet") for split in ("dev", "test"))
    texts = [mmlu_harness.prompt(row) for row in rows.to_dict("records")]
    texts += [mmlu_harness.description(subject) for subject in mmlu.SUBJECTS]
    tokenizer = standin.build_tokenizer([*texts, *(f" {letter}" for letter in "ABCD")])
    small = make_standin.make_model(len(tokenizer))
    config = small.config
    config.text_config.vocab_size = vocabulary
    assert len(tokenizer) <= vocabulary
    gemma_folder.write_model(Gemma3ForConditionalGeneration(config), tokenizer, folder / "model")
    return folder / "model"


def compare(model: Path, folder: Path, arguments: argparse.Namespace) -> None:
    """Print whether both engines give the same scores, and the time and memory that each took."""
    figures, tables = {"stock": [], "last_position": []}, {}
    for _ in range(arguments.rounds):
        for engine in figures:
            samples = folder / f"{engine}.parquet"
            options = ["--checkpoint", model, "--mmlu", folder / "mmlu", "--dtype", "float32", "--engine", engine]
            options += ["--num-fewshot", arguments.num_fewshot, "--batch-size", 8, "--limit", arguments.limit]
            options += ["--samples", samples]
            figures[engine].append(run("evaluate_mmlu", *options, "--output", folder / "report.json"))
            tables[engine] = pd.read_parquet(samples)
    medians = {engine: pd.DataFrame(rows).median() for engine, rows in figures.items()}
    difference = (tables["stock"].filter(like="log_") - tables["last_position"].filter(like="log_")).abs().max().max()
    same = (tables["stock"]["prediction"] == tables["last_position"]["prediction"]).sum()
    stock, ours = medians["stock"], medians["last_position"]
    questions = f"{len(tables['stock'])} questions with {arguments.num_fewshot} examples"
    print(f"{questions}: {same} same predictions, scores within {difference:.1e}")
    for name, unit in (("seconds", "s"), ("gb", "GB at most")):
        print(f"  {stock[name]:.1f} {unit} against {ours[name]:.1f}: {stock[name] / ours[name]:.1f} x")


def run(program: str, *arguments: object) -> dict:
    """Run a program; return its seconds and its peak resident gigabytes."""
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
