"""The blocks that an export is made of, and the comparison of what was written with what was meant."""

from collections.abc import Callable, Iterable, Iterator
from types import ModuleType

import torch

from int4_qat.checkpoint import blocks, weight_files
from int4_qat.checkpoint.weight_files import StoredTensor
from int4_qat.quantization import int4
from int4_qat.quantization.schemes import Scheme

Block = tuple[slice, torch.Tensor]  # some rows of a weight, and their values in bf16
QuantizedBlock = tuple[slice, int4.Int4Weight]


def row_blocks(source: StoredTensor) -> Iterator[Block]:
    """Yield a stored weight, whatever its type, in blocks."""
    for rows in blocks.row_blocks(*source.shape):
        yield rows, source.read_rows(rows).to(blocks.STORAGE_DTYPE)


def quantize(
    blocks: Iterable[Block], scheme: Scheme, grid: int4.AnyGrid | None, method: ModuleType
) -> Iterator[QuantizedBlock]:
    """Yield the blocks of a weight on its given grid or, without one, as a method finds them that needs no texts."""
    if grid is None:
        yield from method.quantize(blocks, scheme)
    else:
        for rows, values in blocks:
            yield rows, int4.quantize(values, scheme, grid.of_rows(rows))


def differing(expected: Iterable[QuantizedBlock], read: Callable[[slice], int4.Int4Weight]) -> int:
    """Return how many weights that `read` finds do not stand for the expected ones."""
    count = 0
    for rows, wanted in expected:
        found = read(rows)
        if not all(torch.equal(*pair) for pair in zip(wanted, found, strict=True)):
            weights = [int4.dequantize(each).to(blocks.STORAGE_DTYPE) for each in (wanted, found)]
            count += weight_files.count_different(*weights)
    return count
