"""A frozen base that is spread over the GPUs of a training, where it does not fit one of them.

Each GPU holds a share of every decoder layer, and the whole of one layer while that computes: PyTorch's FSDP2. What is
trained is whole on each, so optimizers and checkpoints know of nothing; its gradients are averaged after each step.
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
ROOM = 1.5  # times the frozen weights must be free on a GPU for each to hold them whole


def decided(word: str, frozen: int, free: int | None) -> str:
    """Return ALWAYS or NEVER for a word of WORDS, by the bytes of the frozen weights and those free on a GPU.

    free is None on a CPU. Raise InputError for another word.
    """
    if word not in WORDS:
        raise InputError(f"--spread: expected {', '.join(WORDS[:-1])} or {AUTO}, found {word}")
    if ranks.count() == 1:
        return NEVER
    if word == AUTO:
        return ALWAYS if free is not None and ROOM * frozen > free else NEVER
    return word


def spread(model: torch.nn.Module, device: str) -> int:
    """Spread the frozen weights of a model on a CPU, and bring the rest of it to the device; return how many layers."""
    mesh = init_device_mesh(device, (ranks.count(),))
    found = list(layers(model))
    for layer in found:
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        fully_shard(layer, mesh=mesh, ignored_params=trained)
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
    """Yield the layers of a model, those of its towers too."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            yield module


def is_spread(model: torch.nn.Module) -> bool:
    """Return whether a model's weights are spread."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def average_gradients(model: torch.nn.Module) -> None:
    """Average the gradients of what is trained over all processes."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= ranks.count()
