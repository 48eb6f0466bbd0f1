"""Shard a frozen base over the GPUs of a training if it does not fit on one of them.

Each GPU holds a shard of every decoder layer, and a whole layer only while that layer computes and while the one before
it does, to fetch it in time (PyTorch's FSDP2). The trained parameters are whole on each GPU, so optimizers and
checkpoints need not know about the sharding; their gradients are averaged after each step.
"""

from collections.abc import Iterator

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from int4_qat.system.errors import InputError
from int4_qat.training import qat, ranks
from int4_qat.training.learned_grid import LearnedGrid

ALWAYS, NEVER, AUTO = WORDS = ("always", "never", "auto")
ROOM = 1.5  # times the size of the frozen weights must be free on a GPU for each GPU to hold them whole


def decided(word: str, frozen: int, free: int | None) -> str:
    """Return ALWAYS or NEVER for a word of WORDS, given the bytes of the frozen weights and the bytes free on a GPU.

    `free` is None on a CPU. Raise InputError for any other word.
    """
    if word not in WORDS:
        raise InputError(f"--spread: expected {', '.join(WORDS[:-1])} or {AUTO}, found {word}")
    if ranks.count() == 1:
        return NEVER
    if word == AUTO:
        return ALWAYS if free is not None and ROOM * frozen > free else NEVER
    return word


def spread(model: torch.nn.Module, device: str) -> int:
    """Shard the frozen weights of a model on a CPU, and move the rest to the device; return the number of layers."""
    mesh = init_device_mesh(device, (ranks.count(),))
    found = list(layers(model))
    for layer in found:
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(layer, mesh=mesh, ignored_params=trained)
    for stack in stacks(model):
        # A layer outside of such a root would be one itself: whole until its backward pass, and not fetched ahead.
        fully_shard(stack, mesh=mesh, ignored_params=set(stack.parameters()))
    for module in model.modules():
        if isinstance(module, LearnedGrid):
            module.start = module.start.to(device)
        elif isinstance(module, qat.MergedInt4Linear) and not isinstance(module.grid, LearnedGrid | None):
            module.__dict__["grid"] = module.grid.to(device)
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return len(found)


def layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the layers of a model, including those of its towers."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            yield module


def stacks(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the modules that call a list of layers one after the other, as a decoder does."""
    for module in model.modules():
        lists = [part for part in module.children() if isinstance(part, torch.nn.ModuleList)]
        if any(isinstance(layer, GradientCheckpointingLayer) for layers in lists for layer in layers):
            yield module


def is_spread(model: torch.nn.Module) -> bool:
    """Return whether a model's weights are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def average_gradients(model: torch.nn.Module) -> None:
    """Average the gradients of the trained parameters over all processes."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= ranks.count()
