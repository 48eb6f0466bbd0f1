"""Compile a training on a GPU, so that a decoder layer or a loss is a few kernels and not a chain of passes.

The computation of the exported weight is left out: it is an operator of its own (`merged_linear`), to round exactly.
"""

import functools
from collections.abc import Callable

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from int4_qat.training.recomputation import Recomputed

# Each combination of attention kind, mode (training or reading), adapter (with or without) and length is compiled
# separately. Beyond PyTorch's own limit of 8, further combinations would run uncompiled.
RECOMPILATIONS = 64


def compile_layers(model: PeftModel, recompute: bool, backend: str = "inductor") -> list[str]:
    """Let every decoder layer that holds an adapter be compiled when it is first called; return the layers' names.

    With `recompute` a layer keeps only its input for the backward pass. `backend` is one of torch.compile. From then on
    a forward pass needs autocast if weights and adapters differ in dtype.
    """
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    torch._dynamo.config.optimize_ddp = False  # it would split a layer, and values between the parts would be kept
    layers = [(name, module) for name, module in model.named_modules() if is_layer(module)]
    for _, layer in layers:
        if recompute:
            layer.forward = Recomputed(layer, backend)
        else:
            layer.compile(backend=backend)
        for module in layer.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False  # autocast would round the fp32 back to the same bfloat16
    return [name for name, _ in layers]


def is_layer(module: torch.nn.Module) -> bool:
    """Return whether a module is a decoder layer with an adapter in it."""
    holds = any(isinstance(part, BaseTunerLayer) for part in module.modules())
    return holds and isinstance(module, GradientCheckpointingLayer)


@functools.cache
def compiled(function: Callable) -> Callable:
    """Return a function compiled into a few kernels, for any number of rows."""
    return torch.compile(function)
