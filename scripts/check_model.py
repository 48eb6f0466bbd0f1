"""Check, before anything long, that the config fits a base model, and that there is room for the results.

Every entry of `quantization.skip` must name something in the model, the group size divide the inputs of what is trained
in int4, and each arm's marks of turns be those of the chat template; the message says which would be. What the variants
take on the disk is held against what is free there, and the model against the memory of a GPU if this machine has one.
Writes what the model is made of.

    python scripts/check_model.py --model resources/models/demo --results results/demo --group-size 64 \\
        --arms '{"qat": {"qat_scheme": "int4", "instruction_part": "<start_of_turn>user\\n", ...}}' \\
        --variants base-bf16 base-int4 qat-int4 --device cpu --output results/demo/model.json
"""

import argparse
import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from int4_qat import devices, errors, files, linears, models, text_model, tokenization, turns, variants, weight_files
from int4_qat.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--results", required=True, type=Path, help="folder of the results of this model")
    parser.add_argument("--group-size", required=True, type=int, help="input features that share a scale")
    parser.add_argument("--skip", nargs="*", default=[], help="modules that stay in bf16: names, or parts of names")
    parser.add_argument("--variants", required=True, nargs="+")
    parser.add_argument("--arms", default={}, type=json.loads, help="JSON: the recipe of each arm, by its name")
    parser.add_argument("--charts", action="store_true", help="the model will be asked about charts")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="JSON: what the model is made of")
    arguments = parser.parse_args()
    model, _, names = models.open_checkpoint(arguments.model)
    layers = linears.choose(model, set(names.values()), arguments.group_size, arguments.skip)
    if arguments.charts and not hasattr(model.config, "vision_config"):
        raise InputError(f"evaluation.chartqa: expected null, since a {type(model).__name__} sees no pictures")
    tokenizer = tokenization.load_tokenizer(arguments.model)
    for arm, recipe in arguments.arms.items():
        key = f"finetune.arms.{arm}"
        turns.refuse_wrong_marks(tokenizer, key, recipe["instruction_part"], recipe["response_part"])
        if recipe["qat_scheme"]:
            refuse_undivided(model, layers, arguments.group_size, arm)
    sizes = sizes_of(arguments.model, layers)
    refuse_full_disk(arguments.results, missing_bytes(arguments.results, arguments.variants, sizes))
    if arguments.device == "cuda" and devices.any_gpu():
        devices.refuse_too_small(sizes["bf16"], "the model in bf16", devices.total_memory())
    instruction, response = turns.propose(tokenizer)
    in_int4 = sum(layer["quantized"] for layer in layers)
    files.write_json(
        arguments.output,
        {
            "model_type": model.config.model_type,
            "class": type(model).__name__,
            "linears": len(layers),
            "linears_in_int4": in_int4,
            "no_text_passes_through": text_model.unreached(model),
            "bytes": sizes,
            "bos": tokenization.template_bos(tokenizer),
            "instruction_part": instruction,
            "response_part": response,
        },
    )
    print(f"{type(model).__name__}: {in_int4} of {len(layers)} linears go into int4")


def refuse_undivided(model: PreTrainedModel, layers: list[dict], group_size: int, arm: str) -> None:
    """Raise InputError if the group size alone keeps a linear, which an arm would train in int4, in bf16."""
    for layer in layers:
        if layer["reason"] == linears.undivided(model.get_submodule(layer["name"]), group_size):
            raise InputError(f"quantization: arm '{arm}', {layer['name']}: {layer['reason']}; add it to `skip`")


def sizes_of(model: Path, layers: list[dict]) -> dict[str, int]:
    """Return the bytes of the weights in each precision."""
    bf16 = weight_files.file_bytes(model)
    return {"bf16": bf16, "int4": bf16 - sum(layer["bytes_before"] - layer["bytes_after"] for layer in layers)}


def missing_bytes(results: Path, names: list[str], sizes: dict[str, int]) -> int:
    """Return the bytes of the weights that the variants need and that are not there yet; the base's are linked."""
    merged = [f"{weights}-bf16" for weights in variants.weights_of(names) if weights != variants.BASE]
    needed = dict.fromkeys([*merged, *(name for name in names if name != variants.BASELINE)])
    return sum(sizes[variants.split(name)[1]] for name in needed if not (results / name / "checkpoint").exists())


def refuse_full_disk(results: Path, needed: int) -> None:
    """Raise InputError unless the disk of the results has room for so many bytes more."""
    place = next(folder for folder in [results.absolute(), *results.absolute().parents] if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(f"{results}: expected {needed / 1e9:.1f} GB free for the variants, found {free / 1e9:.1f} GB")


if __name__ == "__main__":
    errors.run(main)
