"""Load int4 checkpoints with transformers, but without its own readers of int4 weights.

For torchao's layout, transformers compares, for each weight, each name that one file's metadata lists with each name
that any file describes, which takes a minute for 12 billion parameters. For compressed-tensors, it requires the package
of that name, which converts every weight to floats. Here transformers reads the stored parts like any other tensors,
into modules that hold them; the modules that compute with the weights replace those afterwards.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from int4_qat.checkpoint import architecture, loading, weight_files
from int4_qat.engines import stored_words
from int4_qat.quantization.int4 import Int4Weight
from int4_qat.system.errors import InputError

OURS = "int4_qat_stored"  # the name under which transformers finds the classes below
Parts = dict[str, weight_files.StoredTensor]  # the stored parts of a weight, by their names
Made = Callable[[torch.nn.Linear, Int4Weight], torch.nn.Module]  # from a linear without a weight, and its weight


class StoredLinear(torch.nn.Module):
    """A module that holds the stored parts of a linear's weight, under their names in the files."""

    def __init__(self, linear: torch.nn.Linear, parts: Parts) -> None:
        super().__init__()
        for name, stored in parts.items():
            empty = torch.empty(stored.shape, dtype=weight_files.DTYPES[stored.dtype], device="meta")
            self.register_buffer(name, empty)
        self.register_parameter("bias", linear.bias)
        self.__dict__["linear"] = linear  # not a submodule, which transformers would look for in the files

    def made(self, layout: ModuleType, make: Made) -> torch.nn.Module:
        """Return the module that computes with the weight."""
        self.linear.register_parameter("bias", self.bias)
        return make(self.linear, layout.of_parts(*(getattr(self, name, None) for name in layout.PARTS)))


@register_quantization_config(OURS)
class StoredConfig(QuantizationConfigMixin):
    """The stored parts of each linear by its name, their layout's name and settings, and what replaces the linears."""

    def __init__(self, linears: dict[str, Parts], method: str, words: dict, make: Made) -> None:
        self.quant_method = OURS
        self.linears, self.method, self.words, self.make = linears, method, words, make


@register_quantizer(OURS)
class StoredQuantizer(HfQuantizer):
    """A quantizer that replaces linears by their stored parts before loading, and by computing modules after it."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs) -> None:
        given = self.quantization_config
        for name, parts in given.linears.items():
            linear = model.get_submodule(name)
            if type(linear) is not torch.nn.Linear:
                raise InputError(f"{name}: expected a Linear with an int4 weight, found a {type(linear).__name__}")
            refuse_misfits(name, linear, parts, stored_words.LAYOUTS[given.method], given.words)
            model.set_submodule(name, StoredLinear(linear, parts))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs) -> PreTrainedModel:
        given = self.quantization_config
        for name in given.linears:
            made = model.get_submodule(name).made(stored_words.LAYOUTS[given.method], given.make)
            model.set_submodule(name, made)
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def load(folder: Path, dtype: torch.dtype, device: str, make: Made) -> PreTrainedModel:
    """Return the model in evaluation mode; `make` returns the replacement of each linear with an int4 weight.

    Raise InputError as `loading.load` does, or if the folder is in another layout.
    """
    layout, words = stored_words.layout_of(folder)
    config = architecture.read_config(folder)
    del config.quantization_config  # with it, transformers would use its own reader
    given = StoredConfig(stored_linears(folder, layout), layout.METHOD, words, make)
    model = loading.load(folder, dtype, device, config=config, quantization_config=given)
    model.config.quantization_config = model.hf_quantizer = None  # to transformers, it is now a model like any other
    model.is_quantized = False
    return model


def refuse_misfits(name: str, linear: torch.nn.Linear, parts: Parts, layout: ModuleType, words: dict) -> None:
    """Raise InputError unless the stored parts fit the shape of the linear and the settings of config.json."""
    expected = layout.layout(*linear.weight.shape, **words)
    found = {part: (tuple(stored.shape), weight_files.DTYPES[stored.dtype]) for part, stored in parts.items()}
    if found != expected:
        raise InputError(f"{name}: expected the parts {expected}, found {found}")


def stored_linears(folder: Path, layout: ModuleType) -> dict[str, Parts]:
    """Return the stored parts of each int4 linear of a folder, by its name in transformers and the part's name."""
    stored = weight_files.stored_tensors(folder)
    weights = sorted({weight for key in stored if (weight := layout.weight_of(key)) != key})
    names = architecture.renamed(architecture.without_weights(folder), weights)
    unknown = [weight for weight in weights if names[weight] is None]
    if unknown:
        raise InputError(f"{folder}: expected only parameters of the model in config.json, found {unknown[0]}")
    return {names[weight].removesuffix(".weight"): parts_of(weight, stored, layout) for weight in weights}


def parts_of(weight: str, stored: Parts, layout: ModuleType) -> Parts:
    """Return the stored parts of a weight; a symmetric one may lack zero points."""
    keys = {part: layout.part_name(weight, part) for part in layout.PARTS}
    return {part: stored[key] for part, key in keys.items() if key in stored}
