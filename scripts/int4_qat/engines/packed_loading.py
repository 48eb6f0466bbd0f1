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

EXPECTED = {"type": "int", "num_bits": 4, "strategy": "group"}  # of the weights
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
    """The stored parts of each linear, by the linear's name, and what config.json says of their weights."""

    def __init__(self, linears: dict[str, dict[str, weight_files.StoredTensor]], weights: dict) -> None:
        self.quant_method = OURS
        self.linears = linears
        self.weights = weights


@register_quantizer(OURS)
class PackedQuantizer(HfQuantizer):
    """Put the stored parts in the place of linears before transformers loads, and linears in theirs afterwards."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs) -> None:
        for name, parts in self.quantization_config.linears.items():
            linear = model.get_submodule(name)
            if not isinstance(linear, torch.nn.Linear):
                raise InputError(f"{name}: expected a Linear with an int4 weight, found a {type(linear).__name__}")
            refuse_misfits(name, linear, parts, self.quantization_config.weights)
            model.set_submodule(name, PackedLinear(linear, parts))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs) -> PreTrainedModel:
        for name in self.quantization_config.linears:
            model.set_submodule(name, model.get_submodule(name).to_linear())
        self.quantization_config.linears = {}  # a config is printed as JSON, which holds no paths
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def load(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the model in evaluation mode, its int4 weights as torchao's tensors.

    Raise InputError as `loading.load` does, or if the folder is in another layout of compressed-tensors.
    """
    config = architecture.read_config(folder)
    weights = words_of_weights(folder, config.quantization_config)
    del config.quantization_config  # transformers would ask for its own way to load it
    packed = PackedConfig(stored_linears(folder), weights)
    return loading.load(folder, dtype, device, config=config, quantization_config=packed)


def words_of_weights(folder: Path, words: dict) -> dict:
    """Return what config.json says of all quantized weights; raise InputError unless it is int4 in groups, packed."""
    key = f"{folder}/config.json: quantization_config"
    if (found := words.get("format")) != packed_weight.LAYOUT:
        raise InputError(f"{key}.format: expected {packed_weight.LAYOUT}, found {found!r}")
    groups = words.get("config_groups") or {}
    if len(groups) != 1:
        raise InputError(f"{key}.config_groups: expected one group, found {', '.join(groups) or 'none'}")
    ((name, group),) = groups.items()
    weights = group.get("weights") or {}
    if (found := {word: weights.get(word) for word in EXPECTED}) != EXPECTED:
        raise InputError(f"{key}.config_groups.{name}.weights: expected {EXPECTED}, found {found}")
    if group.get("input_activations"):
        raise InputError(f"{key}.config_groups.{name}.input_activations: expected none, found some")
    return weights


def refuse_misfits(
    name: str, linear: torch.nn.Linear, parts: dict[str, weight_files.StoredTensor], weights: dict
) -> None:
    """Raise InputError unless the stored parts are those of a linear, by its shape and the words of config.json."""
    expected = packed_weight.layout(*linear.weight.shape, weights["group_size"], weights["symmetric"])
    found = {part: (tuple(stored.shape), weight_files.DTYPES[stored.dtype]) for part, stored in parts.items()}
    if found != expected:
        raise InputError(f"{name}: expected the parts {expected}, found {found}")


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
