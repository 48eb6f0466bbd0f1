"""Measure a linear of Gemma 3 12B on a CPU: dequantized weights, as the loader has them, beside PyTorch's int4 kernel.

python tests/bench_int4_cpu.py
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from int4_qat import int4

ROWS, COLUMNS, GROUP_SIZE, ROUNDS = 15360, 3840, 128, 15


def main() -> None:
    torch.manual_seed(0)
    quantized = int4.quantize(0.02 * torch.randn(ROWS, COLUMNS), GROUP_SIZE)
    weight = int4.dequantize(quantized)
    pairs, scale_and_zero = int4.pack_for_tinygemm(quantized)
    codes = torch.stack([pairs >> 4, pairs & 0xF], dim=-1).flatten(1).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    mm = torch.ops.aten._weight_int4pack_mm_for_cpu
    linear, pad = torch.nn.functional.linear, torch.nn.functional.pad
    half, more = weight.to(torch.bfloat16), codes.shape[1] - COLUMNS
    print(f"{'tokens':>8} {'fp32 ms':>9} {'bf16 ms':>9} {'int4 ms':>9}")
    for tokens in (1, 8, 256):
        x = torch.randn(tokens, COLUMNS)
        short = x.to(torch.bfloat16)
        steps = {
            "fp32": lambda x=x: linear(x, weight),
            "bf16": lambda x=short: linear(x, half),
            "int4": lambda x=short: mm(pad(x, (0, more)), packed, GROUP_SIZE, scale_and_zero),
        }
        seconds = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
        print(f"{tokens:8} " + " ".join(f"{1000 * statistics.median(times):9.2f}" for times in seconds.values()))


if __name__ == "__main__":
    main()
