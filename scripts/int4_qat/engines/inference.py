"""Load bf16 and int4 checkpoints on any device, for evaluation, measurement and generation."""

import functools
from pathlib import Path

import torch
from transformers import PreTrainedModel

from int4_qat.checkpoint import loading
from int4_qat.engines import int4_loading, stored_words
from int4_qat.kernels.tiles import TilePackedLinear
from int4_qat.quantization import int4
from int4_qat.quantization.int4 import Int4Weight
from int4_qat.system.errors import InputError

DEQUANTIZED, TILE_PACKED = "dequantized", "tile_packed"


def is_int4(folder: Path) -> bool:
    """Return whether a checkpoint is quantized."""
    return stored_words.words_of(folder) is not None


def int4_path(folder: Path, device: str) -> str | None:
    """Return the compute path of a checkpoint's int4 weights on a device, or None if it has none.

    dequantized  on a CPU: converted to floats at loading, so memory and speed are those of unquantized weights
    tile_packed  on a GPU: repacked in memory, for TilePackedLinear

    Raise InputError if there is no GPU for 'cuda', or if it is too old for the kernel.
    """
    if not is_int4(folder):
        return None
    if device == "cpu":
        return DEQUANTIZED
    if not torch.cuda.is_available():
        raise InputError("device: expected a GPU for 'cuda', found none")
    if torch.cuda.get_device_capability() < (8, 0):
        raise InputError(
            f"device: expected compute capability 8.0 or more for int4, found {torch.cuda.get_device_name()}"
        )
    return TILE_PACKED


def dequantized(linear: torch.nn.Linear, weight: Int4Weight, dtype: torch.dtype) -> torch.nn.Linear:
    """Return the linear with an int4 weight, dequantized to a dtype, as its weight."""
    linear.weight = torch.nn.Parameter(int4.dequantize(weight).to(dtype), requires_grad=False)
    return linear


def is_dequantized(folder: Path, device: str) -> bool:
    """Return whether a checkpoint's weights run as floats on this device though they are stored as int4."""
    return device == "cpu" and is_int4(folder)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers in memory; tied ones count once, int4 ones as packed."""
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.nbytes for tensor in tensors.values())


def load_model(folder: Path | str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the model of a local checkpoint in evaluation mode, its int4 weights on the path of `int4_path`.

    Raise InputError as `int4_path` and `loading.load` do.
    """
    folder, path = Path(folder), int4_path(folder, device)
    if path is None:
        return loading.load(folder, dtype, device)
    if path == DEQUANTIZED:
        return int4_loading.load(folder, dtype, device, functools.partial(dequantized, dtype=dtype))
    model = int4_loading.load(folder, dtype, device, TilePackedLinear)
    torch.cuda.empty_cache()  # otherwise, memory that packing freed would count as the model's
    return model
