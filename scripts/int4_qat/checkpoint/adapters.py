"""Read the LoRA adapters of a peft folder and merge them into weights, block by block."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig, get_peft_model
from peft.tuners import lora
from transformers import PreTrainedModel

from int4_qat.checkpoint import blocks, model_folder, weight_files
from int4_qat.checkpoint.weight_files import StoredTensor
from int4_qat.system.errors import InputError

PREFIX = "base_model.model."  # peft's prefix to the name of a module


class Adapter(NamedTuple):
    """The update that LoRA adds to a weight: scaling · BA."""

    a: torch.Tensor  # (r, columns)
    b: torch.Tensor  # (rows, r)
    scaling: float


def read(model: PreTrainedModel, folder: Path) -> dict[str, Adapter]:
    """Return every adapter of a peft folder by the name of its base weight.

    Raise InputError if the folder holds no adapter, or unless all adapters are LoRA on linears. LoRA is put into the
    model, which has no weights, so that peft itself determines which tensor belongs where and how it is scaled.
    """
    path = folder / model_folder.ADAPTER
    if not path.exists():  # peft would ask the Hub for it
        raise InputError(f"{path}: expected the config of an adapter, found none")
    config = PeftConfig.from_pretrained(folder)
    stored = weight_files.read_header(folder / "adapter_model.safetensors")
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, lora.Linear)}
    expected = {f"{name}.lora_{side}.weight" for name in layers for side in "AB"}
    for key in sorted(stored.keys() ^ expected):
        problem = "only LoRA on linears of the base, found another weight" if key in stored else "a tensor, found none"
        raise InputError(f"{folder}: {key}: expected {problem}")

    def matrix(key: str) -> torch.Tensor:
        return stored[key].read().view(stored[key].shape)

    return {
        f"{name.removeprefix(PREFIX)}.weight": Adapter(
            matrix(f"{name}.lora_A.weight"), matrix(f"{name}.lora_B.weight"), layer.scaling["default"]
        )
        for name, layer in layers.items()
    }


def merged_blocks(source: StoredTensor, adapter: Adapter) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the rows of each block of W + s·BA, and their values in bf16, (rows, columns).

    W is the weight in bf16, as training loads one that is stored otherwise. The sum is rounded once, from fp32; peft's
    own merge rounds s·BA to bf16 before adding it.
    """
    for rows in blocks.row_blocks(*source.shape):
        weight = source.read_rows(rows).to(blocks.STORAGE_DTYPE)
        yield rows, blocks.merge(weight, adapter.a, adapter.b[rows], adapter.scaling)


def differing(source: StoredTensor, adapter: Adapter, target: StoredTensor) -> int:
    """Return how many stored weights differ from W + s·BA."""
    blocks = merged_blocks(source, adapter)
    return sum(weight_files.count_different(values, target.read_rows(rows)) for rows, values in blocks)
