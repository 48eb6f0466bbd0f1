"""Measure the seconds that the divergence of a variant takes, in total and by part, and its peak memory.

The model has random weights in the shapes of Gemma 3 12B, or is any checkpoint in bf16. The base reads random words
once and is compared with itself; then its int4 export, in groups of 128, is compared with it. The programs of scripts/
do this, each in a separate process.

    python tests/bench/bench_divergence.py --folder /dev/shm/gemma --output divergence.json
    python tests/bench/bench_divergence.py --folder /tmp/tiny --output tiny.json --shapes tiny --device cpu
    python tests/bench/bench_divergence.py --model models/gemma-3-270m --folder /tmp/270m --output 270m.json
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.quantization import schemes
from int4_qat.system import devices, files
from int4_qat.tokenizer import tokenization

ROOT = Path(__file__).parents[2]
SPARE = 1.5  # words for each token that is asked for, since several words can become one token
WATCHED = {  # module and function: the part that its seconds count as
    ("int4_qat.engines.inference", "load_model"): "load",
    ("int4_qat.checkpoint.heads", "load"): "load",
    ("int4_qat.evaluation.divergence", "last_hidden_states"): "forward",
    ("int4_qat.evaluation.divergence", "compare"): "comparison",
    ("int4_qat.evaluation.divergence", "windows"): "tokenizer",
    ("int4_qat.evaluation.hidden_states", "save_file"): "save",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="folder for checkpoints and states; 35 GB for 12B")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for all figures")
    parser.add_argument("--model", type=Path, help="folder with the model, in bf16; random weights if omitted")
    parser.add_argument("--shapes", default="12b", choices=["12b", "tiny"], help="shapes of the random weights")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--dtype", help="number format of the model; bfloat16 or, on a CPU, float32 by default")
    parser.add_argument("--tokens", default=100_000, type=int, help="number of tokens in the text")
    parser.add_argument("--context", default=1024, type=int, help="number of tokens per window, bos included")
    arguments = parser.parse_args()
    if arguments.device == "cuda":  # the processes use the one GPU in turn
        os.environ |= {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"), devices.CLAIMED: "0"}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model = arguments.model or make_model(arguments)
    write_text(model, arguments.tokens, arguments.folder / "words.txt")
    record = {
        "device": devices.name(arguments.device),
        "model": str(arguments.model or arguments.shapes),
        "tokens": arguments.tokens,
        "context": arguments.context,
        "versions": {name: version(name) for name in ("torch", "torchao", "transformers")},
        "steps": {},
    }
    for name, program, words in steps(arguments, model):
        print(f"{name} ...", flush=True)
        record["steps"][name] = measure(program, list(map(str, words)), arguments.device)
        files.write_json(arguments.output, record)
        print(json.dumps({name: record["steps"][name]}), flush=True)


def make_model(arguments: argparse.Namespace) -> Path:
    """Return the folder of the model of random weights, and write it if it does not exist."""
    if not (arguments.folder / "model").exists():
        import bench_gpu  # in the same folder

        given = argparse.Namespace(device=arguments.device, folder=arguments.folder, tokens=64, tokenizer=None)
        bench_gpu.make_model(bench_gpu.SHAPES[arguments.shapes](), given)
    return arguments.folder / "model"


def write_text(model: Path, tokens: int, path: Path) -> None:
    """Write random words of a model's vocabulary, enough for the given number of tokens."""
    tokenizer = tokenization.load_tokenizer(model)
    known = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    chosen = random.Random(0).choices(known, k=round(SPARE * tokens))
    path.write_text(tokenizer.decode(chosen), encoding="utf-8")


def steps(arguments: argparse.Namespace, model: Path):
    """Yield the name, program and options of each measured step; write the int4 folder in between."""
    folder, on = arguments.folder, ["--device", arguments.device]
    dtype = arguments.dtype or {"cuda": "bfloat16", "cpu": "float32"}[arguments.device]
    windows = ["--context", arguments.context, "--limit", arguments.tokens, "--dtype", dtype]
    read = ["--checkpoint", model, "--texts", folder / "words.txt", *windows, *on]
    yield "base-bf16", "record_hidden_states", [*read, "--output", folder / "states", *outputs(folder, "base-bf16")]
    if not (folder / "int4").exists():
        scheme = ["--scheme", json.dumps(schemes.int4(128).words), "--ignore", "--method", "rtn"]
        words = ["--checkpoint", model, *scheme, "--format", "torchao-plain", "--output", folder / "int4"]
        subprocess.run([sys.executable, ROOT / "scripts" / "quantize.py", *words], check=True)
    known = ["--base", model, "--base-states", folder / "states", "--own", model, "--own-states", folder / "states"]
    words = ["--checkpoint", folder / "int4", *known, *on, *outputs(folder, "base-int4")]
    yield "base-int4", "evaluate_divergence", words


def outputs(folder: Path, name: str) -> list:
    """Return the options for the outputs of both programs."""
    return ["--report", folder / f"{name}.json", "--samples", folder / f"{name}.parquet"]


def measure(program: str, words: list[str], device: str) -> dict[str, float]:
    """Run a program in a separate process; return its seconds, in total and by part, and its peak gigabytes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=run_watched, args=(program, words, device, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        sys.exit(f"{program} failed")
    process.join()
    seconds, parts = time.perf_counter() - start, sum(value for name, value in found.items() if name.endswith("_s"))
    return {"seconds": seconds, "start_s": seconds - parts} | found


def run_watched(program: str, words: list[str], device: str, sender) -> None:
    """Run a program with its parts watched, and send their seconds and the peak memory."""
    module, seconds = importlib.import_module(program), Counter()
    for (place, name), part in WATCHED.items():
        watch(importlib.import_module(place), name, part, seconds, device)
    watch(importlib.import_module("int4_qat.checkpoint.heads").Head, "digest", "digest", seconds, device)
    sys.argv = [program, *words]
    start = time.perf_counter()
    module.main()
    seconds["rest"] = time.perf_counter() - start - sum(seconds.values())
    memory = {"resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
    if device == "cuda":
        memory["gpu_peak_gb"] = torch.cuda.max_memory_reserved() / 1e9
    sender.send({f"{part}_s": value for part, value in seconds.items()} | memory)


def watch(owner, name: str, part: str, seconds: Counter, device: str) -> None:
    """Count a function's seconds as a part, including the time until the GPU has finished."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def watched(*arguments, **options):
        start = time.perf_counter()
        result = function(*arguments, **options)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds[part] += time.perf_counter() - start
        return result

    setattr(owner, name, watched)


if __name__ == "__main__":
    main()
