"""int4 weights in safetensors files, in the parts of torchao's plain tensor, block by block."""

from collections.abc import Iterable, Iterator

import torch

from int4_qat import int4, weight_files
from int4_qat.weight_files import StoredTensor

PARTS = ("qdata", "scale", "zero_point")  # of torchao's tensor
Block = tuple[slice, torch.Tensor]  # some rows of a weight, and their values in bf16


def parts(key: str, stored: dict[str, StoredTensor]) -> list[StoredTensor]:
    """The stored tensors of a quantized weight, in the order of PARTS."""
    module, _, name = key.rpartition(".")
    return [stored[f"{module}._{name}_{part}"] for part in PARTS]


def weight_of(key: str) -> str:
    """Return the name of the weight that a stored tensor is, or is a part of."""
    module, _, part = key.rpartition(".")
    return f"{module}.weight" if part in {f"_weight_{name}" for name in PARTS} else key


def row_blocks(source: StoredTensor) -> Iterator[Block]:
    """A stored weight, whatever its type."""
    for rows in int4.row_blocks(*source.shape):
        yield rows, source.read_rows(rows).to(int4.STORAGE_DTYPE)


def write(blocks: Iterable[Block], targets: list[StoredTensor], group_size: int) -> None:
    """Write the codes, scales and zero points of a weight."""
    qdata, *of_groups = targets
    whole = [torch.empty(target.shape, dtype=int4.STORAGE_DTYPE) for target in of_groups]
    for rows, values in blocks:
        codes, *found = int4.quantize(values, group_size)
        qdata.write_rows(rows, int4.pack(codes))
        for tensor, part in zip(whole, found, strict=True):
            tensor[:, rows] = part
    for target, tensor in zip(of_groups, whole, strict=True):
        target.write(tensor)


def differing(blocks: Iterable[Block], stored: list[StoredTensor], group_size: int) -> int:
    """How many stored weights do not stand for what the fake quantization makes of the given ones."""
    qdata, *of_groups = stored
    scale, zero_point = (tensor.read().view(tensor.shape) for tensor in of_groups)
    count = 0
    for rows, values in blocks:
        expected = int4.quantize(values, group_size)
        packed, *found = qdata.read_rows(rows), scale[:, rows], zero_point[:, rows]
        same_groups = all(torch.equal(*pair) for pair in zip(expected[1:], found, strict=True))
        if not (same_groups and torch.equal(int4.pack(expected.codes), packed)):
            weights = [int4.dequantize(each) for each in (expected, int4.Int4Weight(int4.unpack(packed), *found))]
            count += weight_files.count_different(*(weight.to(values.dtype) for weight in weights))
    return count
