"""Merge an adapter into its base model: a standard Hugging Face folder in bf16 safetensors.

Everything that is not weights (tokenizer, processor, chat template, generation config) is the base model's, file by
file. The result is loaded again before it counts.

    python scripts/merge.py --model resources/models/demo --adapter results/demo/qat/adapter \\
        --output results/demo/qat-bf16/checkpoint
"""

import argparse
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tqdm import tqdm

from int4_qat import errors, files, int4, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the peft adapter")
    parser.add_argument("--output", required=True, type=Path, help="folder of the merged model")
    arguments = parser.parse_args()
    base = models.load_model(arguments.model, torch.bfloat16, "cpu")
    merged = merge_rounding_once(PeftModel.from_pretrained(base, arguments.adapter))
    with files.whole(arguments.output) as folder:
        merged.save_pretrained(folder)
        models.copy_companions(arguments.model, folder)
        models.load_model(folder, torch.bfloat16, "cpu")


@torch.no_grad()
def merge_rounding_once(model: PeftModel) -> torch.nn.Module:
    """W + s·BA in fp32, then bf16; peft's own merge rounds s·BA to bf16 before it adds it."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in tqdm(layers, desc="merge", unit=" layers", mininterval=1):
        weight, name = layer.base_layer.weight, model.active_adapter
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        weight.copy_(int4.merge(weight, a, b, layer.scaling[name]))
    return model.unload()


if __name__ == "__main__":
    errors.run(main)
