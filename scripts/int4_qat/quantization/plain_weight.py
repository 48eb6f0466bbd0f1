"""Pack and unpack int4 weights in torchao's plain layout: codes as pairs in bytes, scales and zero points by group."""

import torch

from int4_qat.checkpoint.blocks import STORAGE_DTYPE
from int4_qat.quantization import int4
from int4_qat.quantization.int4 import Int4Weight

METHOD = "torchao"  # as config.json calls it
PARTS = CODES, SCALE, ZERO_POINT = "_weight_qdata", "_weight_scale", "_weight_zero_point"


def part_name(key: str, part: str) -> str:
    """Return the name of a stored part of a weight."""
    return f"{key.removesuffix('.weight')}.{part}"


def weight_of(key: str) -> str:
    """Return the name of the weight that a stored tensor is or belongs to."""
    module, _, part = key.rpartition(".")
    return f"{module}.weight" if part in PARTS else key


def layout(rows: int, columns: int, group_size: int) -> dict[str, tuple[tuple, torch.dtype]]:
    """Return the shape and dtype of each stored part of a weight."""
    of_groups = (columns // group_size, rows), STORAGE_DTYPE
    return {CODES: ((rows, columns // 2), torch.int8), SCALE: of_groups, ZERO_POINT: of_groups}


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Return int8 (rows, columns) codes as pairs in int8 (rows, columns / 2), even columns in the low nibble."""
    pairs = codes.contiguous().view(torch.int16)  # little-endian: the even column is the low byte
    return ((pairs & 0xF) | ((pairs >> int4.BITS) & 0xF0)).to(torch.uint8).view(torch.int8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes that `pack` packed."""
    low = (packed << int4.BITS) >> int4.BITS
    high = packed >> int4.BITS
    return torch.stack([low, high], dim=-1).flatten(-2)


def of_parts(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> Int4Weight:
    """Return the weight made of its stored parts, which come in the order of PARTS."""
    return Int4Weight(unpack(codes), scale, zero_point)
