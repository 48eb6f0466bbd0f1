"""Quantize the weights of an export in blocks of rows, write them, and compare the files with what was meant."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import NamedTuple

import torch

from int4_qat.checkpoint import blocks, weight_files, weight_writer
from int4_qat.checkpoint.weight_files import StoredTensor
from int4_qat.quantization import int4
from int4_qat.quantization.schemes import Scheme
from int4_qat.system import parallel

Block = tuple[slice, torch.Tensor]  # some rows of a weight, and their values in bf16
QuantizedBlock = tuple[slice, int4.Int4Weight]


def row_blocks(source: StoredTensor) -> Iterator[Block]:
    """Yield a stored weight of any dtype as blocks of rows in bf16."""
    for rows in blocks.row_blocks(*source.shape):
        yield rows, source.read_rows(rows).to(blocks.STORAGE_DTYPE)


def quantize(
    blocks: Iterable[Block], scheme: Scheme, grid: int4.AnyGrid | None, method: ModuleType
) -> Iterator[QuantizedBlock]:
    """Yield the quantized blocks of a weight: on its given grid or, without one, by a method that needs no texts."""
    if grid is None:
        yield from method.quantize(blocks, scheme)
    else:
        for rows, values in blocks:
            yield rows, int4.quantize(values, scheme, grid.of_rows(rows))


def differing(expected: Iterable[QuantizedBlock], read: Callable[[slice], int4.Int4Weight]) -> int:
    """Return how many of the elements that `read` returns differ from the expected ones, once dequantized to bf16."""
    count = 0
    for rows, wanted in expected:
        found = read(rows)
        if not all(torch.equal(*pair) for pair in zip(wanted, found, strict=True)):
            weights = [int4.dequantize(each).to(blocks.STORAGE_DTYPE) for each in (wanted, found)]
            count += weight_files.count_different(*weights)
    return count


class Written(NamedTuple):
    """The rows of a weight's blocks and a digest of their values, kept instead of the blocks themselves."""

    rows: list[slice]
    digest: bytes


class Record:
    """The rows and the digest of a weight, updated block by block."""

    def __init__(self) -> None:
        self.rows, self.digest = [], hashlib.blake2b(digest_size=16)

    def see(self, block: QuantizedBlock) -> QuantizedBlock:
        """Add a block to the record and return it."""
        rows, weight = block
        self.rows.append(rows)
        for part in weight:
            self.digest.update(part.contiguous().view(torch.uint8).numpy())
        return block

    def written(self) -> Written:
        return Written(self.rows, self.digest.digest())


def read_back(read: Callable[[slice], int4.Int4Weight], rows: Iterable[slice]) -> Written:
    """Return the record of what `read` returns for the given blocks of rows of a weight."""
    record = Record()
    for of_block in rows:
        record.see((of_block, read(of_block)))
    return record.written()


def fill(
    layout: ModuleType,
    targets: dict[str, StoredTensor],
    kept: Mapping[str, StoredTensor],
    in_int4: Mapping[str, Callable[[], Iterable[QuantizedBlock]]],
) -> dict[str, int]:
    """Write the tensors of an export and read them back; return by key how many elements differ from what was meant.

    `kept` holds the tensors that are copied, by key. `in_int4` holds, for each other key, a function that yields the
    quantized blocks of the weight.
    """

    def write(key: str) -> Written | None:
        if key in kept:
            weight_writer.copy(kept[key], targets[key])
            return None
        record = Record()
        layout.write(key, map(record.see, in_int4[key]()), targets)
        return record.written()

    keys = [*kept, *in_int4]
    written = parallel.in_processes(write, keys, "write")

    def compare(key: str) -> int:
        if key in kept:
            return weight_files.differing(kept[key], targets[key])
        read, meant = layout.reader(key, targets), written[key]
        # The weight is quantized a second time only to count what differs.
        return 0 if read_back(read, meant.rows) == meant else differing(in_int4[key](), read)

    return parallel.in_processes(compare, keys, "compare")


def with_bytes_after(
    layers: list[dict], layout: ModuleType, plan: Mapping[str, torch.Tensor], names: dict[str, str], scheme: Scheme
) -> list[dict]:
    """Return the entries of a manifest's linears, each with the bytes that its weight takes in a layout.

    `plan` holds the weights that become int4, on the meta device, by key; `names` maps these keys to parameter names.
    """
    sizes = {}
    for key, weight in plan.items():
        parts, _ = layout.lay_out({key: weight}, names, {names[key]}, scheme)
        sizes[names[key].removesuffix(".weight")] = sum(part.nbytes for part in parts.values())
    return [layer | {"bytes_after": sizes.get(layer["name"], layer["bytes_before"])} for layer in layers]
