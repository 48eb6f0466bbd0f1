"""One loader for bf16 and int4 checkpoints, on any device: what evaluates, measures and generates loads with it."""

from pathlib import Path

import torch
from torchao.quantization import Int4Tensor
from transformers import PreTrainedModel

from int4_qat.checkpoint import architecture, loading
from int4_qat.engines import packed_loading
from int4_qat.kernels.tiles import TilePackedLinear
from int4_qat.quantization import int4, packed_weight, torchao_tensor
from int4_qat.system.errors import InputError

DEQUANTIZED, TILE_PACKED = "dequantized", "tile_packed"
TORCHAO = "torchao"  # as config.json calls it
LOADED = (TORCHAO, packed_weight.METHOD)


def is_int4(folder: Path) -> bool:
    """Return whether a checkpoint is quantized."""
    return hasattr(architecture.read_config(folder), "quantization_config")


def quantizer(folder: Path | str) -> str | None:
    """Return what config.json says quantized a checkpoint, None of one in bf16; raise InputError if it is unknown."""
    words = getattr(architecture.read_config(folder), "quantization_config", None)
    if words is None:
        return None
    if (found := words.get("quant_method")) not in LOADED:
        key = f"{folder}/config.json: quantization_config.quant_method"
        raise InputError(f"{key}: expected {' or '.join(LOADED)}, found {found!r}")
    return found


def int4_path(folder: Path, device: str) -> str | None:
    """Return how a checkpoint's int4 weights are computed with on a device; None if it has none.

    dequantized  a CPU: made floats at loading, so memory and speed are those of unquantized weights
    tile_packed  a GPU: repacked in memory, for TilePackedLinear

    Raise InputError if a GPU is too old for the kernel.
    """
    if not is_int4(folder):
        return None
    if device == "cpu":
        return DEQUANTIZED
    if torch.cuda.get_device_capability() < (8, 0):
        raise InputError(f"device: int4 needs compute capability 8.0, {torch.cuda.get_device_name()} has less")
    return TILE_PACKED


@torch.no_grad()
def dequantize_weights(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Replace every torchao int4 weight by what it stands for; return how many there were."""
    quantized = [module for module in model.modules() if isinstance(getattr(module, "weight", None), Int4Tensor)]
    for module in quantized:
        module.weight = torch.nn.Parameter(
            int4.dequantize(torchao_tensor.to_weight(module.weight)).to(dtype), requires_grad=False
        )
    if quantized:
        model.config.quantization_config = None
        model.hf_quantizer = None
        model.is_quantized = False
        model.to(dtype)
    return len(quantized)


def tile_pack_weights(model: torch.nn.Module) -> None:
    """Replace every linear that holds torchao's plain int4 tensor, on a GPU, by a TilePackedLinear."""
    modules = model.named_modules()
    for name in [name for name, module in modules if isinstance(getattr(module, "weight", None), Int4Tensor)]:
        module = model.get_submodule(name)
        if type(module) is not torch.nn.Linear:
            raise InputError(f"{name}: expected a Linear with an int4 weight, found a {type(module).__name__}")
        model.set_submodule(name, TilePackedLinear(module))
        del module.weight  # transformers binds a method to the module: it stays until Python collects its garbage
    torch.cuda.empty_cache()  # what packing let go would count as the model's


def is_dequantized(folder: Path, device: str) -> bool:
    """Return whether a checkpoint's weights run as floats on this device though they are stored as int4."""
    return device == "cpu" and is_int4(folder)


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers in memory, tied ones once, int4 ones as packed."""
    tensors: dict[int, torch.Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        parts = [getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", ())] or [tensor]
        tensors.update({part.data_ptr(): part for part in parts})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def load_model(folder: Path | str, dtype: torch.dtype, device: str, dequantize: bool = True) -> PreTrainedModel:
    """Return a local checkpoint in evaluation mode; raise InputError as `loading.load` does.

    int4 weights take the path that `int4_path` names; on a CPU they stay torchao's tensors if `dequantize` is False.
    """
    load = packed_loading.load if quantizer(folder) == packed_weight.METHOD else loading.load
    model = load(Path(folder), dtype, device)
    path = int4_path(folder, device)
    if path == DEQUANTIZED and dequantize:
        dequantize_weights(model, dtype)
    elif path == TILE_PACKED:
        tile_pack_weights(model)
    return model
