"""Time a linear of Gemma 3 12B with its dequantized weight and with the int4 kernels that a device has.

On a CPU, the loader dequantizes; this is compared with PyTorch's own int4 kernel. On a GPU, the benchmark times bf16,
the loader's linear, the kernel that this linear calls for few tokens and, where these packages are installed, torchao's
plain tensor on mslk's kernel and humming's kernels. It uses CUDA graphs, so that only the kernels count, and copies of
the weight in turn, so that, as in a model, no weight is in the cache.

    python tests/bench/bench_int4.py
    python tests/bench/bench_int4.py --device cuda
"""

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.engines import inference
from int4_qat.kernels import tiles
from int4_qat.quantization import int4, packed_weight, schemes, torchao_tensor

ROWS, COLUMNS, GROUP_SIZE, ROUNDS = 15360, 3840, 128, 15
TOKENS = {"cpu": (1, 8, 256), "cuda": (1, 4, 8, 16, 24, 32, 64, 256, 2048, 8192, 32768)}
COPIES = 8  # together more than the 50 MB of an H100's cache
CALLS = 3 * COPIES  # per CUDA graph
Step = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    device = parser.parse_args().device
    torch.manual_seed(0)
    quantized = int4.quantize(0.02 * torch.randn(ROWS, COLUMNS), schemes.int4(GROUP_SIZE, schemes.INTEGER))
    steps = {"cpu": on_cpu, "cuda": on_gpu}[device](quantized)
    print(f"{'tokens':>8} " + " ".join(f"{name + ' ms':>14}" for name in steps))
    for tokens in TOKENS[device]:
        x = torch.randn(tokens, COLUMNS, device=device)
        inputs = {name: x if name == "fp32" else x.to(torch.bfloat16) for name in steps}
        prepared = {name: {"cpu": call, "cuda": graph}[device](step, inputs[name]) for name, step in steps.items()}
        seconds = {name: [] for name in prepared}
        for _ in range(ROUNDS):
            for name, run in prepared.items():
                seconds[name].append(run())
        print(f"{tokens:8} " + " ".join(f"{1000 * statistics.median(times):14.3f}" for times in seconds.values()))


def on_cpu(quantized: int4.Int4Weight) -> dict[str, Step]:
    """Return the fp32 and bf16 products with the dequantized weight, and PyTorch's int4 kernel."""
    weight = int4.dequantize(quantized)
    pairs, scale_and_zero = tiles.pack_for_tinygemm(quantized)
    codes = torch.stack([pairs >> 4, pairs & 0xF], dim=-1).flatten(1).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    mm = torch.ops.aten._weight_int4pack_mm_for_cpu
    linear, pad = torch.nn.functional.linear, torch.nn.functional.pad
    half, more = weight.to(torch.bfloat16), codes.shape[1] - COLUMNS
    return {
        "fp32": lambda x: linear(x, weight),
        "bf16": lambda x: linear(x, half),
        "int4": lambda x: mm(pad(x, (0, more)), packed, GROUP_SIZE, scale_and_zero),
    }


def on_gpu(quantized: int4.Int4Weight) -> dict[str, Step]:
    """Return the bf16 product, the loader's linear, its kernel for few tokens, and the installed packages' kernels."""
    half, copies = int4.dequantize(quantized).to(torch.bfloat16), on_gpu_copies(quantized)
    packed = [tiles.TilePackedLinear(linear_with(None), copy) for copy in copies]
    forms = {
        "bf16": [linear_with(half.cuda()) for _ in range(COPIES)],
        inference.TILE_PACKED: packed,
        "tinygemm": [linear.tinygemm for linear in packed],
    }
    if hasattr(torch.ops.mslk, "bf16i4bf16_rowwise"):
        forms["mslk"] = [linear_with(torchao_tensor.of_weight(copy)) for copy in copies]
    if importlib.util.find_spec("humming"):
        forms["humming"] = [humming_linear(copy) for copy in copies]
    return {name: in_turn(steps) for name, steps in forms.items()}


def on_gpu_copies(quantized: int4.Int4Weight) -> list[int4.Int4Weight]:
    """Return copies of a weight on the GPU."""
    return [int4.Int4Weight(*(part.cuda() for part in quantized)) for _ in range(COPIES)]


def linear_with(weight: torch.Tensor | None) -> torch.nn.Linear:
    """Return a linear without a bias that has the given weight, if any."""
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False, device="meta")
    if weight is not None:
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear


def humming_linear(weight: int4.Int4Weight) -> torch.nn.Module:
    """Return humming's linear with this weight, whose zero points are whole steps."""
    from humming.layer import HummingLayer

    words = {"quant_method": "compressed-tensors", "format": packed_weight.LAYOUT, "type": "int", "num_bits": 4}
    words |= {"strategy": "group", "group_size": GROUP_SIZE, "symmetric": False}
    layer = HummingLayer(shape_n=ROWS, shape_k=COLUMNS, weight_config=words, torch_dtype=torch.bfloat16).cuda()
    parts = {
        packed_weight.PACKED: packed_weight.pack(weight.codes),
        packed_weight.SCALE: weight.scale.t().contiguous().to(torch.bfloat16),
        packed_weight.ZERO_POINT: packed_weight.pack_zero_points(weight.grid),
        packed_weight.SHAPE: torch.tensor([ROWS, COLUMNS]),
    }
    layer.load_from_tensors(parts)
    layer.transform()
    return layer


def in_turn(steps: Iterable[Step]) -> Step:
    """Return a function that takes the next of some steps at each call."""
    turns = itertools.cycle(steps)
    return lambda x: next(turns)(x)


def call(step: Step, x: torch.Tensor) -> Callable[[], float]:
    """Return a function that measures the seconds of one call."""

    def run() -> float:
        start = time.perf_counter()
        step(x)
        return time.perf_counter() - start

    return run


@torch.no_grad()
def graph(step: Step, x: torch.Tensor) -> Callable[[], float]:
    """Return a function that measures the mean seconds of a call among many in a CUDA graph."""
    step(x)
    recorded, begin, end = torch.cuda.CUDAGraph(), torch.cuda.Event(True), torch.cuda.Event(True)
    with torch.cuda.graph(recorded):
        for _ in range(CALLS):
            step(x)

    def run() -> float:
        begin.record()
        recorded.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / CALLS

    return run


if __name__ == "__main__":
    main()
