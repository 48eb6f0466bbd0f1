"""Measure how long one request takes: generate a fixed number of tokens, many times over.

    python scripts/measure_latency.py --checkpoint results/demo/qat-int4/checkpoint --dtype float32 \\
        --engine transformers --input-len 256 --output-len 256 --batch-size 1 --warmup 10 --iterations 30 \\
        --output results/demo/qat-int4/latency.json
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from int4_qat import devices, errors, files, models

PERCENTILES = (10, 25, 50, 75, 90, 99)
SMALLEST_TOKEN, TOKENS = 100, 10_000
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--engine", required=True, choices=["transformers"])
    parser.add_argument("--dtype", required=True, choices=list(models.DTYPES))
    parser.add_argument("--input-len", required=True, type=int, help="tokens of the prompt")
    parser.add_argument("--output-len", required=True, type=int, help="tokens to generate")
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--warmup", required=True, type=int, help="iterations that do not count")
    parser.add_argument("--iterations", required=True, type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="latency.json")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    model = models.load_model(arguments.checkpoint, models.DTYPES[arguments.dtype], arguments.device)
    latencies = measure(model, arguments)
    files.write_json(
        arguments.output,
        {
            "mean_s": np.mean(latencies).item(),
            "percentiles_s": {str(p): np.percentile(latencies, p).item() for p in PERCENTILES},
            "latencies_s": latencies,
            "engine": arguments.engine,
            "engine_version": version(arguments.engine),
            "input_len": arguments.input_len,
            "output_len": arguments.output_len,
            "batch_size": arguments.batch_size,
            "warmup": arguments.warmup,
            "iterations": arguments.iterations,
            "dtype": arguments.dtype,
            "dequantized": (arguments.checkpoint / "manifest.json").exists() and arguments.device == "cpu",
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        },
    )


def measure(model: torch.nn.Module, arguments: argparse.Namespace) -> list[float]:
    """Seconds of each iteration, on random tokens."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (arguments.batch_size, arguments.input_len)
    highest = min(TOKENS, model.config.get_text_config().vocab_size)
    tokens = torch.randint(SMALLEST_TOKEN, highest, shape, generator=generator).to(arguments.device)
    options = dict(max_new_tokens=arguments.output_len, min_new_tokens=arguments.output_len, do_sample=False)
    latencies = []
    for iteration in tqdm(range(arguments.warmup + arguments.iterations), desc="latency", mininterval=1):
        synchronize(arguments.device)
        start = time.perf_counter()
        output = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
        synchronize(arguments.device)
        if iteration >= arguments.warmup:
            latencies.append(time.perf_counter() - start)
        if output.shape[1] != arguments.input_len + arguments.output_len:
            raise RuntimeError(f"{output.shape[1] - arguments.input_len} tokens came, not {arguments.output_len}")
    return latencies


def synchronize(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    errors.run(main)
