"""Read a model's folder without its weights: config, architecture, and transformers' name for each tensor."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
import transformers
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

from int4_qat.checkpoint import weight_files
from int4_qat.checkpoint.blocks import STORAGE_DTYPE
from int4_qat.system import files
from int4_qat.system.errors import InputError, one_line

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def read_config(folder: Path | str) -> PretrainedConfig:
    """Return the config of a local folder; raise InputError if there is none or transformers does not support it."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: expected a folder with a model, found no config.json in it")
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


def longest_text(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model takes at once, or None if its config does not say."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def refuse_long_text(config: PretrainedConfig, tokens: int, key: str) -> None:
    """Raise InputError, which names a key of the config, if a model takes fewer tokens at once than `tokens`."""
    longest = longest_text(config)
    if longest and tokens > longest:
        raise InputError(f"{key}: expected at most {longest}, the model's context, found {tokens}")


def auto_class(config: PretrainedConfig) -> type:
    """Return the auto class of transformers that builds the model of a config."""
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def without_weights(folder: Path) -> PreTrainedModel:
    """Return the architecture of a local folder in bf16 on the meta device: modules, names and shapes, but no memory.

    Raise InputError if transformers has no text-generating model of that type.
    """
    config = read_config(folder)
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(f"{folder}: expected a model that writes text, found {config.model_type} ({reason})") from None


class Checkpoint(NamedTuple):
    """A bf16 folder: its architecture without weights, its tensors, and transformers' name for each of them."""

    model: PreTrainedModel
    tensors: dict[str, weight_files.StoredTensor]
    names: dict[str, str]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the part of a bf16 folder that transformers loads; raise InputError unless that is the whole model."""
    model, stored = without_weights(folder), weight_files.stored_tensors(folder)
    names = parameter_names(model, stored, folder)
    return Checkpoint(model, {key: stored[key] for key in names}, names)


def parameter_names(
    model: PreTrainedModel, stored: dict[str, weight_files.StoredTensor], folder: Path
) -> dict[str, str]:
    """Return transformers' name for each stored tensor that it does not ignore; loading may rename tensors.

    Raise InputError unless all tensors fit the model and none is missing.
    """
    state = model.state_dict()
    names = {key: found or key for key, found in renamed(model, stored).items()}
    strangers = unexpected(model, {name for name in names.values() if name not in state})
    for key, name in names.items():
        if name in strangers or (name in state and state[name].shape != stored[key].shape):
            shape = list(stored[key].shape)
            raise InputError(f"{folder}: expected only parameters of {type(model).__name__}, found {key} {shape}")
    missing = sorted(state.keys() - set(names.values()) - model.all_tied_weights_keys.keys())
    if missing:
        raise InputError(f"{folder}: expected the weight {missing[0]}, found none")
    return {key: name for key, name in names.items() if name in state}


def renamed(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str | None]:
    """Return the state dict's name for each key of a checkpoint; None if it has none, or loading combines tensors."""
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
    """Return an export's tensors on the meta device: floats in bf16, as a checkpoint stores them, others unchanged."""
    dtypes = {name: weight_files.DTYPES[tensor.dtype] for name, tensor in stored.items()}
    return {
        name: torch.empty(
            tensor.shape, dtype=STORAGE_DTYPE if dtypes[name].is_floating_point else dtypes[name], device="meta"
        )
        for name, tensor in stored.items()
    }


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files of a model folder except its weights; files that `folder` already has, such as a config, stay."""
    for file in sorted(source.rglob("*")):
        is_weights = file.suffix == ".safetensors" or file.name.endswith(".safetensors.index.json")
        place = folder / file.relative_to(source)
        if file.is_file() and not is_weights and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
