"""Answer a prompt with a checkpoint, as the card does with transformers: load the folder and apply its chat template.

    python scripts/generate.py --checkpoint results/demo/qat-int4/checkpoint --dtype float32 \\
        --prompt "Give me a short introduction to large language models." --max-new-tokens 64
"""

import argparse
from pathlib import Path

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference
from int4_qat.system import devices, errors
from int4_qat.tokenizer import tokenization

PROMPT = "Give me a short introduction to large language models."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=list(architecture.DTYPES), help="number format of the model"
    )
    parser.add_argument("--prompt", default=PROMPT, help="prompt to answer")
    parser.add_argument("--max-new-tokens", default=32768, type=int, help="maximum number of tokens to generate")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    model = inference.load_model(arguments.checkpoint, architecture.DTYPES[arguments.dtype], arguments.device)
    tokenizer = tokenization.load_tokenizer(arguments.checkpoint)
    text = tokenization.render(tokenizer, [arguments.prompt], add_generation_prompt=True)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(arguments.device)
    generated = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens)
    print(tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())


if __name__ == "__main__":
    errors.run(main)
