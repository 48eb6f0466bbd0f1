"""A folder in compressed-tensors' `pack-quantized` layout, loaded by transformers with torchao's int4 tensors.

transformers itself asks for the package compressed-tensors, which turns every weight into floats. Here transformers
reads the stored parts into modules that hold them, and the modules become linears afterwards.
"""

from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from int4_qat.checkpoint import architecture, loading, weight_files
from int4_qat.quantization import packed_weight, torchao_tensor
from int4_qat.system.errors import InputError

METHOD = "compressed-tensors"  # as config.json calls it
LAYOUT = "pack-quantized"
OURS = "int4_qat_packed"  # the name under which transformers finds the classes below


class PackedLinear(torch.nn.Module):
    """The stored parts of a linear, under the names that they have in the files."""

    def __init__(self, linear: torch.nn.Linear, parts: dict[str, weight_files.StoredTensor]) -> None:
        super().__init__()
        self.linear_type = type(linear)
        for name, stored in parts.items():
            empty = torch.empty(stored.shape, dtype=weight_files.DTYPES[stored.dtype], device="meta")
            self.register_buffer(name, empty)
        self.register_parameter("bias", linear.bias)

    def to_linear(self) -> torch.nn.Linear:
        """Return the linear, its weight as torchao's int4 tensor."""
        found = packed_weight.of_parts(*(getattr(self, name, None) for name in packed_weight.PARTS))
        with torch.device("meta"):
            linear = self.linear_type(*reversed(found.codes.shape), bias=False)
        linear.weight = torch.nn.Parameter(torchao_tensor.of_weight(found), requires_grad=False)
        linear.register_parameter("bias", self.bias)
        return linear


@register_quantization_config(OURS)
class PackedConfig(QuantizationConfigMixin):
    """The stored parts of each linear, by the linear's name."""

    def __init__(self, linears: dict[str, dict[str, weight_files.StoredTensor]] | None = None) -> None:
        self.quant_method = OURS
        self.linears = linears or {}


@register_quantizer(OURS)
class PackedQuantizer(HfQuantizer):
    """Put the stored parts in the place of linears before transformers loads, and linears in theirs afterwards."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs) -> None:
        for name, parts in self.quantization_config.linears.items():
            linear = model.get_submodule(name)
            if not isinstance(linear, torch.nn.Linear):
                raise InputError(f"{name}: expected a Linear with an int4 weight, found a {type(linear).__name__}")
            model.set_submodule(name, PackedLinear(linear, parts))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs) -> PreTrainedModel:
        for name in self.quantization_config.linears:
            model.set_submodule(name, model.get_submodule(name).to_linear())
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def load(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the model in evaluation mode, its int4 weights as torchao's tensors.

    Raise InputError as `loading.load` does, or if the folder is in another layout of compressed-tensors.
    """
    config = architecture.read_config(folder)
    refuse_other_layouts(folder, config.quantization_config)
    del config.quantization_config  # transformers would ask for its own way to load it
    return loading.load(folder, dtype, device, config=config, quantization_config=PackedConfig(stored_linears(folder)))


def refuse_other_layouts(folder: Path, words: dict) -> None:
    """Raise InputError unless config.json's words tell of int4 in groups, packed."""
    if (found := words.get("format")) != LAYOUT:
        raise InputError(f"{folder}/config.json: quantization_config.format: expected {LAYOUT}, found {found!r}")
    expected = {"type": "int", "num_bits": 4, "strategy": "group"}
    for name, group in words["config_groups"].items():
        if (weights := {key: group["weights"].get(key) for key in expected}) != expected:
            key = f"quantization_config.config_groups.{name}.weights"
            raise InputError(f"{folder}/config.json: {key}: expected {expected}, found {weights}")


def stored_linears(folder: Path) -> dict[str, dict[str, weight_files.StoredTensor]]:
    """Return the stored parts of each int4 linear of a folder, by its name in transformers and the part's."""
    stored = weight_files.stored_tensors(folder)
    packed = [key for key in stored if key.endswith(f".{packed_weight.PACKED}")]
    weights = [packed_weight.weight_of(key) for key in packed]
    names = architecture.renamed(architecture.without_weights(folder), weights)
    unknown = [weight for weight in weights if names[weight] is None]
    if unknown:
        raise InputError(f"{folder}: {unknown[0]} is no parameter of the model of its config")
    return {names[weight].removesuffix(".weight"): parts_of(weight, stored) for weight in weights}


def parts_of(weight: str, stored: dict[str, weight_files.StoredTensor]) -> dict[str, weight_files.StoredTensor]:
    """Return the stored parts of a weight; a symmetric one has no zero points."""
    keys = {part: packed_weight.part_name(weight, part) for part in packed_weight.PARTS}
    return {part: stored[key] for part, key in keys.items() if key in stored}
