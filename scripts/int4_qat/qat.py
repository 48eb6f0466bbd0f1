"""Fake quantization in training: torchao's FakeQuantizedLinear, rounding as the export does."""

import torch
from torchao.quantization import quantize_
from torchao.quantization.qat import FakeQuantizedLinear, QATConfig
from torchao.quantization.qat.fake_quantize_config import Int4WeightFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import Int4WeightFakeQuantizer

from int4_qat import int4
from int4_qat.errors import InputError


class DeployedInt4FakeQuantizer(Int4WeightFakeQuantizer):
    """torchao's int4 fake quantizer, with scale and zero point rounded to bfloat16 as the checkpoint stores them."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return int4.fake_quantize(w, self.config.group_size)


def fake_quantize_base_linears(model: torch.nn.Module, group_size: int) -> list[str]:
    """Put fake quant on the linears below LoRA's adapters, in place; the names of those it was put on.

    InputError if there are none, or if the group size does not divide one's input features: a training that only
    looks like QAT is worse than none.
    """

    def is_target(module: torch.nn.Module, name: str) -> bool:
        return name.endswith(".base_layer") and isinstance(module, torch.nn.Linear)

    for name, module in model.named_modules():
        if is_target(module, name) and module.in_features % group_size:
            raise InputError(
                f"quantization.group_size: {group_size} does not divide the {module.in_features} inputs of {name}"
            )
    weight_config = Int4WeightFakeQuantizeConfig(group_size=group_size, activation_dtype=torch.bfloat16)
    quantize_(model, QATConfig(weight_config=weight_config, step="prepare"), filter_fn=is_target)
    placed = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantizedLinear)}
    if not placed:
        raise InputError("qat_scheme: no layer could be fake-quantized; no linear lies below a LoRA adapter")
    for module in placed.values():
        module.weight_fake_quantizer = DeployedInt4FakeQuantizer(weight_config)
    return list(placed)
