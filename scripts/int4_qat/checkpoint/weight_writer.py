"""Write the weight files of a folder: lay them out first, then fill them block by block."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from int4_qat.checkpoint import weight_files
from int4_qat.checkpoint.weight_files import StoredTensor
from int4_qat.system import files
from int4_qat.system.errors import InputError

SHARD_SIZE = "5GB"  # the Hub's default


def of_pytorch(_: Iterable[str]) -> dict[str, str]:
    """Return the metadata of a file of plain tensors."""
    return {"format": "pt"}


def create(
    folder: Path, plan: dict[str, torch.Tensor], metadata: Callable[[Iterable[str]], dict[str, str]] = of_pytorch
) -> dict[str, StoredTensor]:
    """Lay out a folder's weight files, in shards with an index where the Hub wants them; return the tensors to write.

    plan holds tensors on the meta device, in the order in which they go into shards. metadata returns the metadata of a
    file's header, given the names of the file's tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = split_torch_state_dict_into_shards(plan, max_shard_size=SHARD_SIZE)
    for name, members in split.filename_to_tensors.items():
        _create_file(folder / name, {member: plan[member] for member in members}, metadata(members))
    if split.is_sharded:
        files.write_json(
            folder / weight_files.INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        )
    return weight_files.stored_tensors(folder)


def _create_file(path: Path, plan: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Create a file with its header and room for the tensors; wider dtypes come first, as in safetensors."""
    header: dict[str, dict] = {"__metadata__": metadata}
    end = 0
    for name, tensor in sorted(plan.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": weight_files.NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        stream.truncate(8 + len(content) + end)


def copy(source: StoredTensor, target: StoredTensor) -> None:
    """Copy a tensor to another place, in the dtype that it has there."""
    for start, stop in source.blocks():
        target.write(source.read(start, stop).to(weight_files.DTYPES[target.dtype]), start)


def refuse_differences(folder: Path, differing: dict[str, int], expected: str = "what was written") -> None:
    """Raise InputError if weights differ from what they should be; it counts them and names the first such tensor."""
    wrong = [name for name, count in differing.items() if count]
    if wrong:
        total = sum(differing.values())
        raise InputError(f"{folder}: {total} weights differ from {expected}, the first in {wrong[0]}")
