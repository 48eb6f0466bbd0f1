"""LoRA adapters of a peft folder, and the weights that they are merged into, block by block."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners import lora
from transformers import PreTrainedModel

from int4_qat.checkpoint import blocks, weight_files
from int4_qat.checkpoint.weight_files import StoredTensor
from int4_qat.system.errors import InputError

PREFIX = "base_model.model."  # peft's, before the name of a module


class Adapter(NamedTuple):
    """What LoRA adds to a weight: scaling · BA."""

    a: torch.Tensor  # (r, columns)
    b: torch.Tensor  # (rows, r)
    scaling: float


def read(model: PreTrainedModel, folder: Path) -> dict[str, Adapter]:
    """Every adapter of a peft folder by the name of the weight below it; InputError unless all are LoRA on linears.

    Puts LoRA into the model, which has no weights: peft itself says what belongs where, and what it is scaled by.
    """
    config = PeftConfig.from_pretrained(folder)
    stored = weight_files.read_header(folder / "adapter_model.safetensors")
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, lora.Linear)}
    expected = {f"{name}.lora_{side}.weight" for name in layers for side in "AB"}
    for key in sorted(stored.keys() ^ expected):
        problem = "belongs to no LoRA on a linear of the base model" if key in stored else "is not in the adapter"
        raise InputError(f"{folder}: {key} {problem}")

    def matrix(key: str) -> torch.Tensor:
        return stored[key].read().view(stored[key].shape)

    return {
        f"{name.removeprefix(PREFIX)}.weight": Adapter(
            matrix(f"{name}.lora_A.weight"), matrix(f"{name}.lora_B.weight"), layer.scaling["default"]
        )
        for name, layer in layers.items()
    }


def merged_blocks(source: StoredTensor, adapter: Adapter) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows of each block of W + s·BA, and their values in bf16, (rows, columns).

    Rounded once, from fp32: peft's own merge rounds s·BA to bf16 before it adds it.
    """
    for rows in blocks.row_blocks(*source.shape):
        yield rows, blocks.merge(source.read_rows(rows), adapter.a, adapter.b[rows], adapter.scaling)


def differing(source: StoredTensor, adapter: Adapter, target: StoredTensor) -> int:
    """How many stored weights are not W + s·BA."""
    blocks = merged_blocks(source, adapter)
    return sum(weight_files.count_different(values, target.read_rows(rows)) for rows, values in blocks)
