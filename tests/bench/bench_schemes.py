"""Measure the weight error of each scheme, and the cost of limiting the significant bits of an integer scheme's scale.

The error is |Q(W) - W| / |W| over all linears of a model's folder that int4 applies to, or over Gaussian weights. Rows
with the same number of bits for all scales are for comparison: with 5, every zero point is exact in bfloat16; with 8,
not all are.

    python tests/bench/bench_schemes.py
    python tests/bench/bench_schemes.py --model models/gemma-3-270m --group-sizes 32 128
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.checkpoint import architecture
from int4_qat.quantization import exports, int4, linears, schemes

BITS = (5, 8)
Way = Callable[[torch.Tensor], torch.Tensor]  # from a weight in fp32 to its rounded values
KINDS = {"float": schemes.FLOAT, "integer": schemes.INTEGER, "symmetric": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder with the model, in bf16; Gaussian weights if omitted")
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[32, 64, 128], help="weights per group")
    arguments = parser.parse_args()
    for group_size in arguments.group_sizes:
        ways = {kind: as_stored(schemes.int4(group_size, zero_point)) for kind, zero_point in KINDS.items()}
        ways |= {f"integer, {bits} bits of the scale": integer(group_size, bits) for bits in BITS}
        for name, error in errors(arguments.model, group_size, ways).items():
            print(f"groups of {group_size:3}, {name:30} {error:.5f}", flush=True)


def as_stored(scheme: schemes.Scheme) -> Way:
    """Return a function that rounds a weight as its export does."""
    return lambda weight: int4.fake_quantize(weight, scheme)


def integer(group_size: int, bits: int) -> Way:
    """Return a function that rounds on a grid with an integer zero point and a scale of the given significant bits."""

    def quantize(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.view(len(weight), -1, group_size)
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low).clamp(min=int4.SMALLEST_RANGE).double() / int4.LEVELS).float()
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)
        zero_point = (-low / scale).round().clamp(0, int4.LEVELS)
        codes = (groups / scale + zero_point).round().clamp(0, int4.LEVELS)
        return ((codes - zero_point) * scale).view_as(weight)

    return quantize


def errors(model: Path | None, group_size: int, ways: dict[str, Way]) -> dict[str, float]:
    """Return |Q(W) - W| / |W| over all weights, by the name of the way of rounding."""
    lost, total = Counter(), 0.0
    for weight in weights_of(model, group_size):
        total += weight.square().sum().item()
        for name, quantize in ways.items():
            lost[name] += (quantize(weight) - weight).square().sum().item()
    return {name: math.sqrt(lost[name] / total) for name in ways}


def weights_of(model: Path | None, group_size: int) -> Iterator[torch.Tensor]:
    """Yield fp32 weights, in blocks of rows, of all linears that the group size divides."""
    if model is None:
        yield torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0))
        return
    checkpoint = architecture.open_checkpoint(model)
    inputs = linears.for_int4(checkpoint.model, set(checkpoint.names.values()))
    for key, name in checkpoint.names.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and inputs.get(module, 1) % group_size == 0:
            yield from (block.float() for _, block in exports.row_blocks(checkpoint.tensors[key]))


if __name__ == "__main__":
    main()
