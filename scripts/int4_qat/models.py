"""One loader for bf16 and int4 checkpoints, on any device; nothing is fetched and no code of a checkpoint is run."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from torchao.quantization import Int4Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from int4_qat import devices, files, int4, weight_files
from int4_qat.errors import InputError, one_line

DEQUANTIZED, TILE_PACKED = "dequantized", "tile_packed"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_model(folder: Path | str, dtype: torch.dtype, device: str, dequantize: bool = True) -> PreTrainedModel:
    """A local checkpoint in evaluation mode; InputError on a missing, unexpected or mismatched key.

    int4 weights take the path that `int4_path` names; on a CPU they stay torchao's tensors if `dequantize` is False.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device: expected a GPU for 'cuda', found none")
    if device == "cuda":
        devices.refuse_too_small(weight_files.file_bytes(Path(folder)), str(folder), devices.free_memory())
    try:
        model, report = auto_class(read_config(folder)).from_pretrained(
            folder,
            dtype=dtype,
            device_map=device,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder}: the weights cannot be read ({str(error).splitlines()[0]})") from None
    problems = {name: keys for name, keys in report.items() if keys}
    if problems:
        raise InputError(f"{folder}: the weights do not fit the config: {problems}")
    path = int4_path(folder, device)
    if path == DEQUANTIZED and dequantize:
        dequantize_weights(model, dtype)
    elif path == TILE_PACKED:
        tile_pack_weights(model)
    return model.eval()


def is_int4(folder: Path) -> bool:
    """Whether a checkpoint is one of quantize."""
    return hasattr(read_config(folder), "quantization_config")


def int4_path(folder: Path, device: str) -> str | None:
    """How a checkpoint's int4 weights are computed with on a device; None if it has none.

    dequantized  a CPU: made floats at loading, so memory and speed are those of unquantized weights
    tile_packed  a GPU: packed anew in memory, for TilePackedLinear

    InputError if a GPU is too old for the kernel.
    """
    if not is_int4(folder):
        return None
    if device == "cpu":
        return DEQUANTIZED
    if torch.cuda.get_device_capability() < (8, 0):
        raise InputError(f"device: int4 needs compute capability 8.0, {torch.cuda.get_device_name()} has less")
    return TILE_PACKED


def read_config(folder: Path | str) -> PretrainedConfig:
    """Return the config of a local folder; raise InputError if there is none, or none that transformers knows."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: expected a model's folder, found no config.json in it")
    content = files.read_json(path)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type not in CONFIG_MAPPING:
        version = transformers.__version__
        raise InputError(f"{path}: model_type: expected one that transformers {version} has, found {model_type!r}")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each model's config checks its values in its own way
        reason = one_line(error)[:200]
        raise InputError(f"{path}: expected the config of a {model_type}, found {reason}") from None


def auto_class(config: PretrainedConfig) -> type:
    """Return the class of transformers that makes the model of a config."""
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def without_weights(folder: Path) -> PreTrainedModel:
    """Return the architecture of a local folder in bf16, on the meta device: modules, names and shapes, and no memory.

    Raise InputError if transformers has no model of that kind that writes text.
    """
    config = read_config(folder)
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{folder}: expected a model that writes text, found {config.model_type} ({reason})") from None


class Checkpoint(NamedTuple):
    """A bf16 folder: its architecture without weights, its tensors, and what transformers calls each of them."""

    model: PreTrainedModel
    tensors: dict[str, weight_files.StoredTensor]
    names: dict[str, str]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return what a bf16 folder holds and transformers takes; raise InputError unless that is the whole model."""
    model, stored = without_weights(folder), weight_files.stored_tensors(folder)
    names = parameter_names(model, stored, folder)
    return Checkpoint(model, {key: stored[key] for key in names}, names)


def parameter_names(
    model: PreTrainedModel, stored: dict[str, weight_files.StoredTensor], folder: Path
) -> dict[str, str]:
    """Return what transformers, which renames at loading, calls each stored tensor that it does not pass over.

    Raise InputError unless all of them fit the model, and none is missing.
    """
    state = model.state_dict()
    names = {key: found or key for key, found in renamed(model, stored).items()}
    strangers = unexpected(model, {name for name in names.values() if name not in state})
    for key, name in names.items():
        if name in strangers or (name in state and state[name].shape != stored[key].shape):
            shape = list(stored[key].shape)
            raise InputError(f"{folder}: {key} {shape} is no parameter of {type(model).__name__}")
    missing = sorted(state.keys() - set(names.values()) - model.all_tied_weights_keys.keys())
    if missing:
        raise InputError(f"{folder}: the weights hold no {missing[0]}")
    return {key: name for key, name in names.items() if name in state}


def renamed(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str | None]:
    """Return the state's name of each key of a checkpoint; None if it has none, or tensors are put together."""
    state = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]

    def rename(key: str) -> str | None:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        return None if converted else name if name in state else key if key in state else None

    return {key: rename(key) for key in keys}


def unexpected(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Return the names that transformers would report as unexpected; it ignores buffers of old checkpoints."""
    info = SimpleNamespace(missing_keys=set(), unexpected_keys=set(names))
    model._adjust_missing_and_unexpected_keys(info)
    return info.unexpected_keys


def stored_as(stored: dict[str, weight_files.StoredTensor]) -> dict[str, torch.Tensor]:
    """The tensors of an export in bf16, on the meta device: floats as a checkpoint stores them, the rest as it is."""
    dtypes = {name: weight_files.DTYPES[tensor.dtype] for name, tensor in stored.items()}
    return {
        name: torch.empty(
            tensor.shape, dtype=int4.STORAGE_DTYPE if dtypes[name].is_floating_point else dtypes[name], device="meta"
        )
        for name, tensor in stored.items()
    }


@torch.no_grad()
def dequantize_weights(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Replace every torchao int4 weight by what it stands for; returns how many there were."""
    quantized = [module for module in model.modules() if isinstance(getattr(module, "weight", None), Int4Tensor)]
    for module in quantized:
        module.weight = torch.nn.Parameter(int4.dequantize(from_torchao(module.weight)).to(dtype), requires_grad=False)
    if quantized:
        model.config.quantization_config = None
        model.hf_quantizer = None
        model.is_quantized = False
        model.to(dtype)
    return len(quantized)


class TilePackedLinear(torch.nn.Module):
    """A linear on the int4 weight of torchao's plain tensor, on a GPU.

    Few tokens are multiplied by PyTorch's tinygemm kernel, in bfloat16. For more, or in another dtype, the weight is
    dequantized at each call, bit for bit as the CPU's loader does it, and multiplied as any other. The buffers are
    plain ones, since torch.compile takes each tensor of torchao's apart at every call, in Python.
    """

    FEW_TOKENS = 24  # tinygemm's time grows with each; here both ways take as long (docs/gpu.md)

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.outputs, self.inputs = linear.weight.shape
        self.group_size = linear.weight.block_size[-1]
        pairs, scale_and_zero = int4.pack_for_tinygemm(from_torchao(linear.weight))
        self.register_buffer("tiles", torch.ops.aten._convert_weight_to_int4pack(pairs, int4.INNER_TILES))
        self.register_buffer("scale_and_zero", scale_and_zero)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs), in the dtype of x."""
        rows = x.reshape(-1, self.inputs)
        if rows.dtype == torch.bfloat16 and 0 < len(rows) <= self.FEW_TOKENS:
            y = self.tinygemm(rows)
            y = y if self.bias is None else y + self.bias
        else:
            weight = int4.dequantize_tiles(self.tiles, self.scale_and_zero, x.dtype)
            y = torch.nn.functional.linear(rows, weight[: self.outputs, : self.inputs], self.bias)
        return y.reshape(*x.shape[:-1], self.outputs)

    def tinygemm(self, rows: torch.Tensor) -> torch.Tensor:
        """bfloat16 (tokens, inputs) to (tokens, outputs), at least one token."""
        padding = len(self.scale_and_zero) * self.group_size - self.inputs
        padded = torch.nn.functional.pad(rows, (0, padding)).contiguous()  # the kernel takes nothing else
        y = torch.ops.aten._weight_int4pack_mm(padded, self.tiles, self.group_size, self.scale_and_zero)
        return y[:, : self.outputs]


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
    """Whether a checkpoint's weights run as floats on this device though they are stored as int4."""
    return device == "cpu" and is_int4(folder)


def to_torchao(quantized: int4.Int4Weight, group_size: int) -> Int4Tensor:
    """torchao's tensor in plain packing: what transformers and vLLM load."""
    return Int4Tensor(
        qdata=int4.pack(quantized.codes),
        scale=quantized.scale,
        zero_point=quantized.zero_point,
        block_size=[1, group_size],
        shape=quantized.codes.shape,
    )


def from_torchao(weight: Int4Tensor) -> int4.Int4Weight:
    """The codes, scale and zero point of torchao's tensor."""
    return int4.Int4Weight(int4.unpack(weight.qdata), weight.scale, weight.zero_point)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers in memory, tied ones once, int4 ones as packed."""
    tensors: dict[int, torch.Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        parts = [getattr(tensor, name) for name in getattr(tensor, "tensor_data_names", ())] or [tensor]
        tensors.update({part.data_ptr(): part for part in parts})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what a model folder holds besides weights and config, unless `folder` has it already."""
    for file in sorted(source.rglob("*")):
        is_weights = file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json")
        place = folder / file.relative_to(source)
        if file.is_file() and not is_weights and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
