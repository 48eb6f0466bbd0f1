"""Quantize a bf16 checkpoint to int4 safetensors that transformers and vLLM recognise (torchao, plain packing).

Every linear that a text passes through is quantized, but for the output head, those that --skip names, and those that
the group size does not divide; manifest.json says of each which it was and why, and names all other matrices. Goes
through the weight files block by block, so it needs the memory of its libraries and not the model's. The result is read
back and compared, weight by weight, before it counts: with what the fake quantization of training makes of the same
weight.

    python scripts/quantize.py --checkpoint results/demo/qat-bf16/checkpoint --scheme int4 --packing plain \\
        --group-size 64 --output results/demo/qat-int4/checkpoint
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Int4WeightOnlyConfig
from transformers import TorchAoConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from int4_qat import errors, files, int4, int4_files, linears, models, module_names, parity, weight_files
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
    parser.add_argument("--skip", nargs="*", default=[], help="modules that stay in bf16: names, or parts of names")
    parser.add_argument("--output", required=True, type=Path, help="folder in int4, with manifest.json")
    arguments = parser.parse_args()
    group_size = arguments.group_size
    model, sources, names = models.open_checkpoint(arguments.checkpoint)
    layers = linears.choose(model, set(names.values()), group_size, arguments.skip)
    chosen = {"scheme": arguments.scheme, "group_size": group_size, "layers": layers, "others": linears.others(model)}
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
            modules_to_not_convert=not_in_int4(layers, names),
        )
        model.config.save_pretrained(folder)
        models.copy_companions(arguments.checkpoint, folder)
        files.write_json(folder / "manifest.json", manifest(arguments, chosen, folder, sum(differing.values())))
    print(f"{len(quantized)} of {len(layers)} linears in int4; read back and compared: 0 weights differ")


def manifest(arguments: argparse.Namespace, chosen: dict, folder: Path, differing: int) -> dict:
    """Return what was quantized, what was not, and the sizes of the weight files before and after."""
    in_int4 = sum(layer["bytes_before"] for layer in chosen["layers"] if layer["quantized"])
    before = weight_files.file_bytes(arguments.checkpoint)
    return {
        **chosen,
        "share_in_int4": in_int4 / before,
        "packing": arguments.packing,
        "bytes_before": before,
        "bytes_after": weight_files.file_bytes(folder),
        "weights_that_differ": differing,
    }


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


def not_in_int4(layers: list[dict], names: dict[str, str]) -> list[str]:
    """Return what config.json says of the linears that are not in int4: their names in transformers and in vLLM.

    The topmost module that holds none in int4 stands for all in it, also by its own name alone, by which vLLM asks for
    a vision tower; but not where transformers would take its name for the beginning of another's. names are the
    parameters' by those in the checkpoint. Raise InputError if no list tells the linears apart.
    """
    in_int4 = [layer["name"] for layer in layers if layer["quantized"]]
    kept = [layer["name"] for layer in layers if not layer["quantized"]]
    roots = module_names.unreached_roots([*in_int4, *kept], set(in_int4))
    clear = [root for root in roots if not any(name.startswith(root) for name in in_int4)]
    listed = [*clear, *(name for name in kept if not module_names.named_by(clear, name))]
    as_stored = [stored_name(name, names) for name in listed]
    used = {part for name in in_int4 for part in name.split(".")}
    alone = {part for part in (name.rpartition(".")[2] for name in clear) if part not in used and not part.isdigit()}
    patterns = sorted({*listed, *alone, *map(vllm_name, listed), *map(vllm_name, as_stored)})
    for layer in layers:
        if should_convert_module(f"{layer['name']}.weight", patterns) != layer["quantized"]:
            raise InputError(f"quantization: config.json cannot tell {layer['name']} from a linear of another kind")
    return patterns


def stored_name(module: str, names: dict[str, str]) -> str:
    """Return the name that a module has in the checkpoint."""
    for key, name in names.items():
        if name.startswith(f"{module}.") and key.endswith(end := name.removeprefix(module)):
            return key.removesuffix(end)
    return module


def vllm_name(name: str) -> str:
    """What vLLM calls a module of a multimodal model that has this name in the checkpoint."""
    for prefix, theirs in VLLM_PREFIXES.items():
        if name.startswith(prefix):
            return theirs + name.removeprefix(prefix)
    return name


if __name__ == "__main__":
    errors.run(main)
