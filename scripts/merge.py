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

from int4_qat import errors, files, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the peft adapter")
    parser.add_argument("--output", required=True, type=Path, help="folder of the merged model")
    arguments = parser.parse_args()
    base = models.load_model(arguments.model, torch.bfloat16, "cpu")
    merged = PeftModel.from_pretrained(base, arguments.adapter).merge_and_unload(progressbar=True, safe_merge=True)
    with files.whole(arguments.output) as folder:
        merged.save_pretrained(folder)
        models.copy_companions(arguments.model, folder)
        models.load_model(folder, torch.bfloat16, "cpu")


if __name__ == "__main__":
    errors.run(main)
