"""Quantize a bf16 checkpoint to int4 safetensors that transformers and vLLM recognise (torchao, plain packing).

Every linear is quantized but those whose name holds a --skip name and those that the group size does not divide;
manifest.json says of each which it was and why. Goes through the weight files block by block, so it needs the memory
of its libraries and not the model's. The result is read back and compared, weight by weight, before it counts: with
what the fake quantization of training makes of the same weight.

    python scripts/quantize.py --checkpoint results/demo/qat-bf16/checkpoint --scheme int4 --packing plain \\
        --group-size 64 --skip lm_head vision_tower multi_modal_projector --output results/demo/qat-int4/checkpoint
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Int4WeightOnlyConfig
from transformers import PreTrainedModel, TorchAoConfig

from int4_qat import errors, files, int4, int4_files, models, parity, weight_files
from int4_qat.errors import InputError

# vLLM's names, by those in checkpoints (hf_to_vllm_mapper of its multimodal models).
VLLM_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder in bf16")
    parser.add_argument("--scheme", required=True, choices=["int4"])
    parser.add_argument("--packing", required=True, choices=["plain"], help="layout of the codes")
    parser.add_argument("--group-size", required=True, type=int, help="input features that share a scale")
    parser.add_argument("--skip", nargs="*", default=[], help="parts of module names that stay in bf16")
    parser.add_argument("--output", required=True, type=Path, help="folder in int4, with manifest.json")
    arguments = parser.parse_args()
    group_size = arguments.group_size
    sources = weight_files.stored_tensors(arguments.checkpoint)
    model = models.without_weights(arguments.checkpoint)
    names = models.parameter_names(model, sources, arguments.checkpoint)
    layers = choose_linears(model, set(names.values()), group_size, arguments.skip)
    chosen = {"scheme": arguments.scheme, "group_size": group_size, "layers": layers}
    parity.refuse_mismatch(arguments.checkpoint, chosen)
    quantized = {f"{layer['name']}.weight" for layer in layers if layer["quantized"]}
    plan, metadata = lay_out(models.stored_as(sources), names, quantized, group_size)

    def write(key: str) -> None:
        if names[key] in quantized:
            int4_files.write(int4_files.row_blocks(sources[key]), int4_files.parts(key, targets), group_size)
        else:
            weight_files.copy(sources[key], targets[key])

    def compare(key: str) -> int:
        if names[key] in quantized:
            blocks = int4_files.row_blocks(sources[key])
            return int4_files.differing(blocks, int4_files.parts(key, targets), group_size)
        return weight_files.differing(sources[key], targets[key])

    with files.whole(arguments.output) as folder:
        targets = weight_files.create(folder, plan, metadata)
        weight_files.in_parallel(write, sources, "quantize")
        differing = weight_files.in_parallel(compare, sources, "compare")
        weight_files.refuse_differences(folder, differing)
        model.config.quantization_config = TorchAoConfig(
            Int4WeightOnlyConfig(group_size=group_size),
            modules_to_not_convert=not_in_int4(layers, arguments.skip, names),
        )
        model.config.save_pretrained(folder)
        models.copy_companions(arguments.checkpoint, folder)
        files.write_json(folder / "manifest.json", manifest(arguments, chosen, folder, sum(differing.values())))
    print(f"{len(quantized)} of {len(layers)} linears in int4; read back and compared: 0 weights differ")


def manifest(arguments: argparse.Namespace, chosen: dict, folder: Path, differing: int) -> dict:
    """What was quantized and what it saved; bytes are those of the weight files."""
    return {
        **chosen,
        "packing": arguments.packing,
        "bytes_before": weight_files.file_bytes(arguments.checkpoint),
        "bytes_after": weight_files.file_bytes(folder),
        "weights_that_differ": differing,
    }


def choose_linears(model: PreTrainedModel, stored: set[str], group_size: int, skip: list[str]) -> list[dict]:
    """One entry a linear: name, shape, quantized, reason, bytes before and after."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    layers = []
    for name, module in linears.items():
        reason = reason_to_skip(name, module, stored, group_size, skip)
        before = module.weight.numel() * int4.STORAGE_DTYPE.itemsize
        layers.append(
            {
                "name": name,
                "shape": [module.out_features, module.in_features],
                "quantized": reason is None,
                "reason": reason or f"linear, {module.in_features} inputs in groups of {group_size}",
                "bytes_before": before,
                "bytes_after": before if reason else int4.stored_bytes(int4.empty(module.weight, group_size)),
            }
        )
    if not any(layer["quantized"] for layer in layers):
        raise InputError("quantization: no layer can be quantized with this group size and skip list")
    return layers


def reason_to_skip(
    name: str, module: torch.nn.Linear, stored: set[str], group_size: int, skip: list[str]
) -> str | None:
    """Why a linear stays in bf16, or None."""
    named = sorted(set(skip) & set(name.split(".")))
    if named:
        return f"quantization.skip names {named[0]}"
    if f"{name}.weight" not in stored:
        return "tied to another weight"
    if module.in_features % group_size:
        return f"group size {group_size} does not divide {module.in_features} inputs"
    return None


def lay_out(
    plan: dict[str, torch.Tensor], names: dict[str, str], quantized: set[str], group_size: int
) -> tuple[dict[str, torch.Tensor], Callable[[Iterable[str]], dict[str, str]]]:
    """The stored tensors, without values, as torchao flattens its own; and the metadata of a file by its tensors.

    A tensor goes by its name in the checkpoint. vLLM looks up each of a file in the file's metadata, one that is split
    in that of each of its files, since it keeps a part for the next; transformers the int4 ones of all files, by the
    parameter's name, in what it read last. Who finds nothing under a name passes it over. No more is described: for
    each weight that transformers loads, torchao compares each name in the last file with each name in any.
    """
    whole = {
        key: models.to_torchao(int4.empty(tensor, group_size), group_size) if names[key] in quantized else tensor
        for key, tensor in plan.items()
    }
    in_int4 = {names[key]: tensor for key, tensor in whole.items() if names[key] in quantized}
    flat = {name: flatten_tensor_state_dict({name: tensor}) for name, tensor in (whole | in_int4).items()}
    by_part = {part: key for key in whole for part in flat[key][0]}

    def metadata(parts: Iterable[str]) -> dict[str, str]:
        listed = sorted({*(by_part[part] for part in parts), *in_int4})
        return {name: flat[name][1][name] for name in listed} | {"tensor_names": json.dumps(listed), "format": "pt"}

    return {part: flat[key][0][part] for part, key in by_part.items()}, metadata


def not_in_int4(layers: list[dict], skip: list[str], names: dict[str, str]) -> list[str]:
    """What config.json says of the linears that are not in int4: their names in transformers and in vLLM.

    A part of names stands for all linears that have it, if none of those is in int4. names are the parameters' by those
    in the checkpoint.
    """
    stored = {name: key for key, name in names.items()}
    kept = [layer["name"] for layer in layers if not layer["quantized"]]
    stored_kept = [stored.get(f"{name}.weight", name).removesuffix(".weight") for name in kept]
    in_int4 = {part for layer in layers if layer["quantized"] for part in layer["name"].split(".")}
    parts = {"lm_head", *models.IMAGE_PARTS, *skip} - in_int4
    return sorted({*parts, *kept, *map(vllm_name, stored_kept)})


def vllm_name(name: str) -> str:
    """What vLLM calls a module of a multimodal model that has this name in the checkpoint."""
    for prefix, theirs in VLLM_PREFIXES.items():
        if name.startswith(prefix):
            return theirs + name.removeprefix(prefix)
    return name


if __name__ == "__main__":
    errors.run(main)
