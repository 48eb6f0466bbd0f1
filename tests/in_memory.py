"""Merge and quantize in memory with transformers, peft and torchao: the reference for streaming exports."""

from pathlib import Path

import torch
from peft import PeftModel
from torchao.quantization import Int4Tensor, Int4WeightOnlyConfig
from transformers import AutoModelForImageTextToText, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from int4_qat.quantization import int4, plain_weight, torchao_tensor
from int4_qat.quantization.schemes import Scheme


def merge(model: Path, adapter: Path, output: Path, dtype: torch.dtype, **options) -> None:
    """Merge an adapter with merge_and_unload in `dtype`, and store the model as bf16."""
    base = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(output, **options)


@torch.no_grad()
def quantize(checkpoint: Path, scheme: Scheme, ignore: list[str], output: Path, **options) -> None:
    """Replace the linears' weights by torchao's tensors, which save_pretrained then flattens."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not set(name.split(".")) & set(ignore):
            tensor = torchao_tensor.of_weight(int4.quantize(module.weight, scheme))
            module.weight = torch.nn.Parameter(tensor, requires_grad=False)
    config = TorchAoConfig(Int4WeightOnlyConfig(group_size=scheme.group_size), modules_to_not_convert=ignore)
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config)
    model.save_pretrained(output, **options)


def to_weight(tensor: Int4Tensor) -> int4.Int4Weight:
    """Return the codes, scale and zero point of a torchao tensor."""
    return int4.Int4Weight(plain_weight.unpack(tensor.qdata), tensor.scale, tensor.zero_point)
