"""Choose which parameters of a model become int4, and say what keeps the others in bf16."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from int4_qat.checkpoint import blocks, module_names, text_model
from int4_qat.quantization import schemes
from int4_qat.quantization.schemes import Scheme
from int4_qat.system.errors import InputError


def choose(model: PreTrainedModel, stored: set[str], scheme: Scheme, ignore: Sequence[str]) -> list[dict]:
    """Return an entry for each linear: name, shape, quantized, reason, bytes in bf16.

    `stored` holds the names of the parameters that the weight files have. Raise InputError if no linear can be
    quantized, or if an entry of `ignore` names nothing.
    """
    refuse_idle(ignore, model)
    reached, head = text_model.reached_parameters(model), text_model.output_head(model)
    layers = []
    for name, module in linears_of(model).items():
        reason = (
            ignored(name, ignore)
            or (None if f"{name}.weight" in reached else "no text passes through it")
            or ("the output head" if name == head else None)
            or (None if f"{name}.weight" in stored else "tied to another weight")
            or undivided(module, scheme.group_size)
        )
        layers.append(
            {
                "name": name,
                "shape": list(module.weight.shape),
                "quantized": reason is None,
                "reason": reason or f"linear, {module.in_features} inputs in groups of {scheme.group_size}",
                "bytes_before": module.weight.numel() * blocks.STORAGE_DTYPE.itemsize,
            }
        )
    if not any(layer["quantized"] for layer in layers):
        raise InputError(
            "quantizations: expected a layer that this group size and `ignore` let be quantized, found none"
        )
    return layers


def others(model: PreTrainedModel) -> list[dict]:
    """Return an entry for each parameter of two or more dimensions that no linear holds: name, shape, reason, bytes."""
    of_linears = {f"{name}.weight" for name in linears_of(model)}
    found = []
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name not in of_linears:
            kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
            size = parameter.numel() * blocks.STORAGE_DTYPE.itemsize
            reason = f"no weight of a Linear: {kind}"
            found.append({"name": name, "shape": list(parameter.shape), "reason": reason, "bytes": size})
    return found


def for_int4(model: PreTrainedModel, stored: set[str]) -> dict[str, int]:
    """Return the input features, by name, of each linear that can become int4, whatever the group size."""
    layers = choose(model, stored, schemes.int4(group_size=1), ignore=())
    return {layer["name"]: layer["shape"][1] for layer in layers if layer["quantized"]}


def linears_of(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """Return the linears of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def ignored(name: str, ignore: Sequence[str]) -> str | None:
    """Return why a quantization's `ignore` keeps a linear in bf16, or None if it does not."""
    entry = module_names.named_by(ignore, name)
    return entry and f"ignore names {entry}"


def undivided(module: torch.nn.Linear, group_size: int) -> str | None:
    """Return why the group size keeps a linear in bf16, or None if it does not."""
    remainder = module.in_features % group_size
    return f"group size {group_size} does not divide {module.in_features} inputs" if remainder else None


def refuse_idle(ignore: Sequence[str], model: PreTrainedModel) -> None:
    """Raise InputError for an entry of `ignore` that names no part of the model."""
    for entry in module_names.idle(ignore, text_model.holders(model)):
        raise InputError(
            f"quantizations: ignore: expected parts of module names of {type(model).__name__}, found '{entry}'"
        )
