"""Write and read torchao's plain layout in safetensors, which transformers loads, and vLLM with mslk's kernels.

The config check calls `misfit` each time Snakemake starts, so torch is imported only where it is used.
"""

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from int4_qat.quantization.schemes import Scheme
from int4_qat.system.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from int4_qat.checkpoint.weight_files import StoredTensor
    from int4_qat.quantization import int4

FOLDER = "checkpoint"  # of a variant
SUFFIX = "INT4"  # of a repository


def misfit(scheme: Scheme) -> str | None:
    """Return what a scheme would have to be to fit this layout, or None if it fits."""
    return None if (scheme.type, scheme.num_bits, scheme.strategy) == ("int", 4, "group") else "int4 in groups"


def lay_out(
    plan: dict[str, "torch.Tensor"], names: dict[str, str], quantized: set[str], scheme: Scheme
) -> tuple[dict[str, "torch.Tensor"], Callable[[Iterable[str]], dict[str, str]]]:
    """Return the stored tensors, without values, as torchao flattens its own, and a function for a file's metadata.

    `plan` holds the tensors of the bf16 checkpoint, on the meta device, by key. `names` maps these keys to parameter
    names, and `quantized` holds the names of the parameters that become int4.

    A tensor is stored under its name in the checkpoint. vLLM looks up each tensor of a file in that file's metadata. It
    looks up a tensor that is split between files in the metadata of each of them, since it keeps a part for the next
    file. transformers looks up the int4 tensors of all files, by parameter name, in the metadata that it read last.
    Both skip a tensor that is not described. Nothing more is described, because for each weight that transformers
    loads, torchao compares each name in the last file with each name in any file.
    """
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    from int4_qat.quantization import int4, torchao_tensor

    whole = {
        key: torchao_tensor.of_weight(int4.empty(tensor, scheme)) if names[key] in quantized else tensor
        for key, tensor in plan.items()
    }
    in_int4 = {names[key]: tensor for key, tensor in whole.items() if names[key] in quantized}
    flat = {name: flatten_tensor_state_dict({name: tensor}) for name, tensor in (whole | in_int4).items()}
    by_part = {part: key for key in whole for part in flat[key][0]}

    def metadata(parts: Iterable[str]) -> dict[str, str]:
        listed = sorted({*(by_part[part] for part in parts), *in_int4})
        return {name: flat[name][1][name] for name in listed} | {"tensor_names": json.dumps(listed), "format": "pt"}

    return {part: flat[key][0][part] for part, key in by_part.items()}, metadata


def weight_of(key: str) -> str:
    """Return the name of the weight that a stored tensor is or belongs to."""
    from int4_qat.quantization import plain_weight

    return plain_weight.weight_of(key)


def write(key: str, blocks: Iterable[tuple[slice, "int4.Int4Weight"]], targets: dict[str, "StoredTensor"]) -> None:
    """Write the codes of a weight block by block, then its scales and zero points."""
    import torch

    from int4_qat.quantization import plain_weight

    qdata, *of_groups = (targets[plain_weight.part_name(key, part)] for part in plain_weight.PARTS)
    whole = [torch.empty(target.shape, dtype=torch.bfloat16) for target in of_groups]
    for rows, (codes, *found) in blocks:
        qdata.write_rows(rows, plain_weight.pack(codes))
        for tensor, part in zip(whole, found, strict=True):
            tensor[:, rows] = part
    for target, tensor in zip(of_groups, whole, strict=True):
        target.write(tensor)


def reader(key: str, stored: dict[str, "StoredTensor"]) -> Callable[[slice], "int4.Int4Weight"]:
    """Return a function that reads rows of a stored weight; scales and zero points of all rows are read once."""
    from int4_qat.quantization import int4, plain_weight

    qdata, *of_groups = (stored[plain_weight.part_name(key, part)] for part in plain_weight.PARTS)
    scale, zero_point = (tensor.read().view(tensor.shape) for tensor in of_groups)

    def read(rows: slice) -> int4.Int4Weight:
        return int4.Int4Weight(plain_weight.unpack(qdata.read_rows(rows)), scale[:, rows], zero_point[:, rows])

    return read


def configure(config: "PretrainedConfig", layers: list[dict], names: dict[str, str], scheme: Scheme) -> None:
    """Add to a model's config what transformers and vLLM need to know about the layout."""
    from torchao.quantization import Int4WeightOnlyConfig
    from transformers import TorchAoConfig

    config.quantization_config = TorchAoConfig(
        Int4WeightOnlyConfig(group_size=scheme.group_size),
        modules_to_not_convert=not_in_int4(layers, names),
    )


def not_in_int4(layers: list[dict], names: dict[str, str]) -> list[str]:
    """Return the names by which config.json lists the linears not in int4, as transformers and vLLM call them.

    A topmost module without int4 linears is listed instead of the linears in it, unless transformers would take its
    name for the beginning of an int4 linear's name. Such a module is also listed by the last part of its name alone, by
    which vLLM asks for a vision tower. `names` maps the parameters' names in the checkpoint to their names in
    transformers. Raise InputError if no list tells the linears apart.
    """
    from transformers.quantizers.quantizers_utils import should_convert_module

    from int4_qat.checkpoint import module_names
    from int4_qat.quantization import left_out

    in_int4, kept = left_out.split(layers)
    clear = [root for root in left_out.roots(layers) if not any(name.startswith(root) for name in in_int4)]
    listed = [*clear, *(name for name in kept if not module_names.named_by(clear, name))]
    used = {part for name in in_int4 for part in name.split(".")}
    alone = {part for part in (name.rpartition(".")[2] for name in clear) if part not in used and not part.isdigit()}
    as_vllm = [left_out.vllm_name(each) for name in listed for each in (name, left_out.stored_name(name, names))]
    patterns = sorted({*listed, *alone, *as_vllm})
    for layer in layers:
        if should_convert_module(f"{layer['name']}.weight", patterns) != layer["quantized"]:
            raise InputError(
                f"quantizations: config.json cannot say of {layer['name']} whether it is in int4; change `ignore`"
            )
    return patterns
