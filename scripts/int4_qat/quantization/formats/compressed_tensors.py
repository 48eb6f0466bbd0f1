"""Write and read compressed-tensors' `pack-quantized` layout in safetensors, for vLLM's own int4 kernels.

The config check calls `misfit` each time Snakemake starts, so torch is imported only where it is used.
"""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from int4_qat.quantization import schemes
from int4_qat.quantization.schemes import Scheme
from int4_qat.system.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from int4_qat.checkpoint.weight_files import StoredTensor
    from int4_qat.quantization import int4

FOLDER = "compressed-tensors"  # of a variant
SUFFIX = "W4A16"  # of a repository
GROUP_SIZES = (32, 64, 128)  # those of vLLM's kernels for GPUs and CPUs


def misfit(scheme: Scheme) -> str | None:
    """Return what a scheme would have to be to fit this layout, or None if it fits."""
    if (scheme.type, scheme.num_bits, scheme.strategy) != ("int", 4, "group") or scheme.zero_point == schemes.FLOAT:
        return f"int4 in groups with zero_point {schemes.INTEGER}, or symmetric"
    if scheme.group_size not in GROUP_SIZES:
        return f"groups of {', '.join(map(str, GROUP_SIZES[:-1]))} or {GROUP_SIZES[-1]}"
    return None


def lay_out(
    plan: dict[str, "torch.Tensor"], names: dict[str, str], quantized: set[str], scheme: Scheme
) -> tuple[dict[str, "torch.Tensor"], Callable[[Iterable[str]], dict[str, str]]]:
    """Return the stored tensors, without values, and a function for a file's metadata.

    `plan` holds the tensors of the bf16 checkpoint, on the meta device, by key. `names` maps these keys to parameter
    names, and `quantized` holds the names of the parameters that become int4.
    """
    from int4_qat.checkpoint import weight_writer

    tensors = {}
    for key, tensor in plan.items():
        tensors |= _parts(key, tensor, scheme) if names[key] in quantized else {key: tensor}
    return tensors, weight_writer.of_pytorch


def _parts(key: str, weight: "torch.Tensor", scheme: Scheme) -> dict[str, "torch.Tensor"]:
    import torch

    from int4_qat.quantization import packed_weight

    parts = packed_weight.layout(*weight.shape, scheme.group_size, scheme.symmetric)
    return {
        packed_weight.part_name(key, part): torch.empty(shape, dtype=dtype, device="meta")
        for part, (shape, dtype) in parts.items()
    }


def weight_of(key: str) -> str:
    """Return the name of the weight that a stored tensor is or belongs to."""
    from int4_qat.quantization import packed_weight

    return packed_weight.weight_of(key)


def write(key: str, blocks: Iterable[tuple[slice, "int4.Int4Weight"]], targets: dict[str, "StoredTensor"]) -> None:
    """Write the codes, scales, zero points and shape of a weight, the codes block by block."""
    import torch

    from int4_qat.quantization import int4, packed_weight

    target = {part: targets.get(packed_weight.part_name(key, part)) for part in packed_weight.PARTS}
    of_rows, columns = [], 0
    for rows, (codes, *grid) in blocks:
        target[packed_weight.PACKED].write_rows(rows, packed_weight.pack(codes))
        of_rows.append(grid)
        columns = codes.shape[1]
    grid = int4.Grid(*(torch.cat(parts, dim=1) for parts in zip(*of_rows, strict=True)))
    target[packed_weight.SCALE].write(grid.scale.t().contiguous())
    if target[packed_weight.ZERO_POINT]:
        target[packed_weight.ZERO_POINT].write(packed_weight.pack_zero_points(grid))
    target[packed_weight.SHAPE].write(torch.tensor([grid.scale.shape[1], columns]))


def reader(key: str, stored: dict[str, "StoredTensor"]) -> Callable[[slice], "int4.Int4Weight"]:
    """Return a function that reads rows of a stored weight; scales and zero points of all rows are read once."""
    from int4_qat.quantization import int4, packed_weight

    packed, scales, zero_points, shape = (
        stored.get(packed_weight.part_name(key, part)) for part in packed_weight.PARTS
    )
    columns = int(shape.read()[1])
    stored_zero_points = zero_points and zero_points.read().view(zero_points.shape)
    grid = packed_weight.grid_of(scales.read().view(scales.shape), stored_zero_points)

    def read(rows: slice) -> int4.Int4Weight:
        codes = packed_weight.unpack(packed.read_rows(rows), columns)
        return int4.Int4Weight(codes, *grid.of_rows(rows))

    return read


def configure(config: "PretrainedConfig", layers: list[dict], names: dict[str, str], scheme: Scheme) -> None:
    """Add to a model's config what vLLM, and transformers with compressed-tensors, need to know about the layout."""
    from int4_qat.quantization.packed_weight import LAYOUT, METHOD

    weights = {
        "num_bits": scheme.num_bits,
        "type": scheme.type,
        "symmetric": scheme.symmetric,
        "strategy": scheme.strategy,
        "group_size": scheme.group_size,
        "dynamic": False,
        "observer": "minmax",
        "observer_kwargs": {},
        "actorder": None,
        "block_structure": None,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": LAYOUT,
    }
    config.quantization_config = {
        "quant_method": METHOD,
        "format": LAYOUT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ignored(layers, names),
        "config_groups": {"group_0": group},
    }


def ignored(layers: list[dict], names: dict[str, str]) -> list[str]:
    """Return the regular expressions by which config.json excludes topmost modules whose linears are not in int4.

    Each matches the end of a module's name, so that it applies whatever a loader calls the enclosing parts of the
    model. `names` maps the parameters' names in the checkpoint to their names in transformers. Raise InputError if no
    expressions tell the linears apart.
    """
    from int4_qat.quantization import left_out

    names_of = {layer["name"]: left_out.names_of(layer["name"], names) for layer in layers}
    in_int4 = [name for layer in layers if layer["quantized"] for name in names_of[layer["name"]]]
    patterns = sorted({_ending(root, in_int4) for root in left_out.roots(layers)})
    for layer in layers:
        for name in names_of[layer["name"]]:
            if any(re.match(pattern, name) for pattern in patterns) == layer["quantized"]:
                raise InputError(
                    f"quantizations: config.json cannot say of {name} whether it is in int4; change `ignore`"
                )
    return [f"re:{pattern}" for pattern in patterns]


def _ending(module: str, others: list[str]) -> str:
    """Return an expression for the shortest end of a module's name, cut at a dot, that matches none of the others."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        pattern = rf"(.*\.)?{re.escape('.'.join(parts[-length:]))}(\..*)?$"
        if not any(re.match(pattern, name) for name in others):
            break
    return pattern
