"""Quantize a bf16 checkpoint to int4 safetensors that transformers and vLLM recognise (torchao, plain packing).

Every linear is quantized but those whose name holds a --skip name and those that the group size does not divide;
manifest.json says of each which it was and why. The result is read back and compared, weight by weight, before it
counts: with what was written, and with what the fake quantization of training makes of the same weight.

    python scripts/quantize.py --checkpoint results/demo/qat-bf16/checkpoint --scheme int4 --packing plain \\
        --group-size 64 --skip lm_head vision_tower multi_modal_projector --output results/demo/qat-int4/checkpoint
"""

import argparse
from pathlib import Path

import torch
from torchao.quantization import Int4Tensor, Int4WeightOnlyConfig
from tqdm import tqdm
from transformers import PreTrainedModel, TorchAoConfig
from transformers.quantizers import AutoHfQuantizer

from int4_qat import errors, files, int4, models
from int4_qat.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder in bf16")
    parser.add_argument("--scheme", required=True, choices=["int4"])
    parser.add_argument("--packing", required=True, choices=["plain"], help="layout of the codes")
    parser.add_argument("--group-size", required=True, type=int, help="input features that share a scale")
    parser.add_argument("--skip", nargs="*", default=[], help="parts of module names that stay in bf16")
    parser.add_argument("--output", required=True, type=Path, help="folder in int4, with manifest.json")
    arguments = parser.parse_args()
    model = models.load_model(arguments.checkpoint, torch.bfloat16, "cpu")
    source = model.state_dict()
    with files.whole(arguments.output) as folder:
        layers = quantize_linears(model, arguments.group_size, arguments.skip)
        attach_config(model, arguments.group_size, [layer["name"] for layer in layers if not layer["quantized"]])
        model.save_pretrained(folder)
        models.copy_companions(arguments.checkpoint, folder)
        differing = compare(folder, model, source, arguments.group_size)
        files.write_json(folder / "manifest.json", manifest(arguments, layers, differing, folder))
    done = [layer for layer in layers if layer["quantized"]]
    print(f"{len(done)} of {len(layers)} linears in int4; read back and compared: {differing} weights differ")


def manifest(arguments: argparse.Namespace, layers: list[dict], differing: int, folder: Path) -> dict:
    """What was quantized and what it saved; bytes are those of the weight files."""
    return {
        "scheme": arguments.scheme,
        "group_size": arguments.group_size,
        "packing": arguments.packing,
        "bytes_before": files.folder_bytes(arguments.checkpoint, "*.safetensors"),
        "bytes_after": files.folder_bytes(folder, "*.safetensors"),
        "weights_that_differ": differing,
        "layers": layers,
    }


@torch.no_grad()
def quantize_linears(model: PreTrainedModel, group_size: int, skip: list[str]) -> list[dict]:
    """Quantize in place; one entry a linear: name, shape, quantized, reason, bytes before and after."""
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    layers = []
    for name, module in tqdm(linears, desc="quantize", unit=" layers", mininterval=1):
        reason = reason_to_skip(name, module, group_size, skip)
        before = after = module.weight.nbytes
        if reason is None:
            quantized = int4.quantize(module.weight, group_size)
            module.weight = torch.nn.Parameter(models.to_torchao(quantized, group_size), requires_grad=False)
            after = int4.stored_bytes(quantized)
        layers.append(
            {
                "name": name,
                "shape": [module.out_features, module.in_features],
                "quantized": reason is None,
                "reason": reason or f"linear, {module.in_features} inputs in groups of {group_size}",
                "bytes_before": before,
                "bytes_after": after,
            }
        )
    if not any(layer["quantized"] for layer in layers):
        raise InputError("quantization: no layer can be quantized with this group size and skip list")
    return layers


def reason_to_skip(name: str, module: torch.nn.Linear, group_size: int, skip: list[str]) -> str | None:
    """Why a linear stays in bf16, or None."""
    named = sorted(set(skip) & set(name.split(".")))
    if named:
        return f"quantization.skip names {named[0]}"
    if module.in_features % group_size:
        return f"group size {group_size} does not divide {module.in_features} inputs"
    return None


def attach_config(model: PreTrainedModel, group_size: int, skipped: list[str]) -> None:
    """Say in config.json how the weights are stored, in transformers' module names and in vLLM's bare ones."""
    bare = {part for name in skipped for part in name.split(".") if part in ("vision_tower", "multi_modal_projector")}
    config = TorchAoConfig(
        Int4WeightOnlyConfig(group_size=group_size), modules_to_not_convert=sorted({"lm_head", *bare, *skipped})
    )
    model.config.quantization_config = config
    model.hf_quantizer = AutoHfQuantizer.from_config(config)


@torch.no_grad()
def compare(folder: Path, written: PreTrainedModel, source: dict[str, torch.Tensor], group_size: int) -> int:
    """Read the folder back and count the weights that training did not see so; InputError names the first such tensor.

    A quantized weight must hold the codes that were written and stand for the fake-quantized source weight, any
    other must be the source's.
    """
    read = models.load_model(folder, torch.bfloat16, "cpu", dequantize=False).state_dict()
    differing, first = 0, None
    for name, tensor in written.state_dict().items():
        found, expected = read[name], source[name]
        if isinstance(tensor, Int4Tensor):
            parts = zip(models.from_torchao(found), models.from_torchao(tensor), strict=True)
            if not all(torch.equal(*pair) for pair in parts):
                raise InputError(f"{folder}: {name} does not hold the codes that were written")
            found = int4.dequantize(models.from_torchao(found)).to(torch.bfloat16)
            expected = int4.fake_quantize(expected, group_size)
        different = int((found != expected).sum())
        differing += different
        first = first or (name if different else None)
    if differing:
        raise InputError(f"{folder}: {differing} weights differ from what training saw, the first in {first}")
    return differing


if __name__ == "__main__":
    errors.run(main)
