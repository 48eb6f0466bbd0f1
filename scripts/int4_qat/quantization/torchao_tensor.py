"""int4 weights as torchao's plain tensor: its parts in memory and in files."""

import torch
from torchao.quantization import Int4Tensor

from int4_qat.quantization import int4

PARTS = ("qdata", "scale", "zero_point")


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Return int8 (rows, columns) codes as pairs in int8 (rows, columns / 2): even columns in the low nibble."""
    pairs = codes.contiguous().view(torch.int16)  # little-endian: the even column is the low byte
    return ((pairs & 0xF) | ((pairs >> int4.BITS) & 0xF0)).to(torch.uint8).view(torch.int8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes that `pack` packed."""
    low = (packed << int4.BITS) >> int4.BITS
    high = packed >> int4.BITS
    return torch.stack([low, high], dim=-1).flatten(-2)


def of_weight(quantized: int4.Int4Weight) -> Int4Tensor:
    """Return torchao's tensor in plain packing: what transformers and vLLM load."""
    codes, scale, zero_point = quantized
    return Int4Tensor(
        qdata=pack(codes),
        scale=scale,
        zero_point=zero_point,
        block_size=[1, codes.shape[1] // len(scale)],
        shape=codes.shape,
    )


def to_weight(tensor: Int4Tensor) -> int4.Int4Weight:
    """Return the codes, scale and zero point of torchao's tensor."""
    return int4.Int4Weight(unpack(tensor.qdata), tensor.scale, tensor.zero_point)


def part_names(key: str) -> list[str]:
    """Return the names of the stored parts of a weight, in the order of PARTS."""
    module, _, name = key.rpartition(".")
    return [f"{module}._{name}_{part}" for part in PARTS]


def weight_of(key: str) -> str:
    """Return the name of the weight that a stored tensor is, or is a part of."""
    module, _, part = key.rpartition(".")
    return f"{module}.weight" if part in {f"_weight_{name}" for name in PARTS} else key
