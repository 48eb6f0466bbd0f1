"""Fake quantization in training: the linears below LoRA compute with weights rounded as the export rounds them.

What is deployed is Q(W + s·BA): the adapter is merged, then quantized. Two targets of training:

    base    y = Q(W)x + s·BAx    as the card and unsloth train; W is frozen, so Q(W) is computed once
    merged  y = Q(W + s·BA)x     the deployed weight itself, with a straight-through gradient

`merged` needs no gradient of the size of a weight: with G = dy the chain rule through the rounding, taken as the
identity, gives dB = s·Gᵀ(xAᵀ), dA = s·(GB)ᵀx, dx = G·Q(W + s·BA).
"""

import torch
from peft.tuners import lora

from int4_qat import int4
from int4_qat.errors import InputError

TARGETS = ("base", "merged")


def fake_quantize_linears(model: torch.nn.Module, target: str, group_size: int) -> list[str]:
    """Let every linear below LoRA train on int4 weights, in place; the names of those linears.

    InputError if there are none, or if the group size does not divide one's input features: a training that only
    looks like QAT is worse than none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, lora.Linear)}
    if not layers:
        raise InputError("qat_scheme: no layer could be fake-quantized; no linear lies below a LoRA adapter")
    for name, layer in layers.items():
        inputs = layer.base_layer.in_features
        if inputs % group_size:
            raise InputError(f"quantization.group_size: {group_size} does not divide the {inputs} inputs of {name}")
        if target == "merged":
            model.set_submodule(name, MergedInt4Linear(layer, group_size))
        else:
            weight = layer.base_layer.weight
            weight.data = int4.fake_quantize(weight.data, group_size)
    return list(layers)


class MergedInt4Linear(lora.Linear):
    """peft's linear with LoRA, its parameters included, but for its forward pass: Q(W + s·BA)x."""

    def __init__(self, layer: lora.Linear, group_size: int):
        torch.nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)
        (self.adapter,) = layer.active_adapters
        if not isinstance(layer.lora_dropout[self.adapter], torch.nn.Identity):
            raise InputError("lora_dropout: expected 0 with qat_target merged; a merged weight has no dropout")
        self.group_size = group_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.lora_A[self.adapter].weight, self.lora_B[self.adapter].weight
        y = _MergedInt4.apply(x, self.base_layer.weight, a, b, self.scaling[self.adapter], self.group_size)
        return y if self.base_layer.bias is None else y + self.base_layer.bias


class _MergedInt4(torch.autograd.Function):
    """x Q(W + s·BA)ᵀ; the weight is made again in the backward pass, so that no layer keeps a second copy."""

    @staticmethod
    def forward(ctx, x, weight, a, b, scaling, group_size):
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling, ctx.group_size = scaling, group_size
        return x @ int4.fake_quantize_merged(weight, a, b, scaling, group_size).to(x.dtype).T

    @staticmethod
    def backward(ctx, dy):
        x, weight, a, b = ctx.saved_tensors
        dx = dy @ int4.fake_quantize_merged(weight, a, b, ctx.scaling, ctx.group_size).to(dy.dtype)
        rows, gradients = x.flatten(0, -2), dy.flatten(0, -2)
        db = ctx.scaling * gradients.T @ (rows @ a.T.to(x.dtype))
        da = ctx.scaling * (gradients @ b.to(dy.dtype)).T @ rows
        return dx, None, da.to(a.dtype), db.to(b.dtype), None, None
