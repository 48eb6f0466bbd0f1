"""Read and write safetensors files a block at a time, so that an export needs memory for blocks, not for a model.

Files are read and written, not mapped, so that none of their pages count as memory of the process.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from int4_qat.system import files
from int4_qat.system.errors import InputError

# Dtypes by the names that safetensors gives them.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
BLOCK = 2**20  # elements that a copy holds at once


class StoredTensor(NamedTuple):
    """The place, dtype and shape of a tensor in a file."""

    path: Path
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    begin: int  # byte of the file at which the tensor begins

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPES[self.dtype].itemsize

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the tensor in memory once floats are loaded in a dtype; packed codes keep theirs."""
        stored = DTYPES[self.dtype]
        return self.elements * (dtype if stored.is_floating_point else stored).itemsize

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return the elements from start to stop as a vector; raise InputError if the file is cut short."""
        dtype = DTYPES[self.dtype]
        stop = self.elements if stop is None else stop
        buffer = bytearray((stop - start) * dtype.itemsize)
        remaining = memoryview(buffer)
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self.begin + start * dtype.itemsize)
            while remaining:  # Linux reads at most 2 GiB at once
                read = stream.readinto(remaining)
                if not read:
                    raise InputError(f"{self.path}: expected a whole file, found a truncated one")
                remaining = remaining[read:]
        return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)

    def write(self, values: torch.Tensor, start: int = 0) -> None:
        """Write values, which must have the tensor's dtype, from element `start` on."""
        assert values.dtype == DTYPES[self.dtype]
        content = values.contiguous().view(-1).view(torch.uint8).numpy()
        with self.path.open("r+b", buffering=0) as stream:
            stream.seek(self.begin + start * values.dtype.itemsize)
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[stream.write(remaining) :]

    def read_rows(self, rows: slice) -> torch.Tensor:
        """Return some rows of a matrix, (rows, columns)."""
        columns = self.shape[1]
        return self.read(rows.start * columns, rows.stop * columns).view(-1, columns)

    def write_rows(self, rows: slice, values: torch.Tensor) -> None:
        """Write some rows of a matrix."""
        self.write(values, rows.start * self.shape[1])

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the start and stop of each block that a copy holds at once."""
        for start in range(0, self.elements, BLOCK):
            yield start, min(start + BLOCK, self.elements)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model's folder by name.

    Raise InputError if a file is missing, cut short, or not as the index says.
    """
    if (folder / WEIGHTS).exists():
        return read_header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise InputError(f"{folder}: expected {WEIGHTS} or {INDEX}, found neither")
    index = read_index(folder / INDEX)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(index.values())):
        found |= read_header(folder / shard)
    wrong = sorted(index.items() ^ {name: tensor.path.name for name, tensor in found.items()}.items())
    if wrong:
        raise InputError(f"{folder / INDEX}: expected {wrong[0][0]} in the file that the index names, found none there")
    return found


def read_index(path: Path) -> dict[str, str]:
    """Return the file name of each tensor; raise InputError unless each names a safetensors file next to the index."""
    index = files.read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path}: weight_map: expected a file for each tensor, found {names!r:.50}")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{path}: weight_map: expected names of safetensors files, found {name!r:.50}")
    return names


def file_bytes(folder: Path) -> int:
    """Return the bytes of the files that hold a model's weights, without copies of the weights in another form."""
    return sum(path.stat().st_size for path in {tensor.path for tensor in stored_tensors(folder).values()})


def loaded_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes that a model's weights take once its floats are loaded in a dtype; packed codes keep theirs."""
    return sum(tensor.loaded_bytes(dtype) for tensor in stored_tensors(folder).values())


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name; raise InputError if it is not a whole safetensors file."""
    try:
        with safe_open(path, "pt"):  # checks that header and length agree
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: the weights cannot be read ({str(error).splitlines()[0]})") from None
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in header.values()} - DTYPES.keys())
    if unknown:
        raise InputError(f"{path}: expected tensors of {', '.join(DTYPES)}, found {unknown[0]}")
    return {
        name: StoredTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def differing(source: StoredTensor, target: StoredTensor) -> int:
    """Return how many elements of a copy differ from those of the source, converted to the copy's dtype."""
    blocks = ((source.read(*block).to(DTYPES[target.dtype]), target.read(*block)) for block in source.blocks())
    return sum(count_different(*pair) for pair in blocks)


def count_different(expected: torch.Tensor, found: torch.Tensor) -> int:
    """Return how many elements differ; NaN differs from NaN."""
    return 0 if torch.equal(expected, found) else int((expected != found).sum())
