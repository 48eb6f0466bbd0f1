"""Write a folder as calibration leaves it, without calibrating: a model and grids that are not its weights' own."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from int4_qat.checkpoint import architecture
from int4_qat.quantization import grids, int4, linears, record
from int4_qat.quantization.int4 import Grid
from int4_qat.quantization.schemes import Scheme
from int4_qat.system import files
from weights import normal


def write(model: Path, folder: Path, scheme: Scheme, ignore: Iterable[str] = ()) -> Path:
    """Copy a model's folder and add, for each linear, the grid of a weight near its own; return the folder."""
    shutil.copytree(model, folder)
    found = {name: grid_near(weight, scheme) for name, weight in weights_of(folder, scheme, ignore).items()}
    grids.write(folder, found)
    calibration = {"scheme": scheme.words, "ignore": sorted(ignore), "method": "gptq"}
    files.write_json(folder / record.CALIBRATION, calibration)
    return folder


def grid_near(weight: torch.Tensor, scheme: Scheme) -> Grid:
    """Return the grid of a weight that differs from the given one by random noise."""
    return int4.quantize(weight * (1 + 0.2 * normal(*weight.shape, seed=3)), scheme).grid


def weights_of(folder: Path, scheme: Scheme, ignore: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """Return the stored weights of the linears that an export quantizes, by name of the linear."""
    model, sources, names = architecture.open_checkpoint(folder)
    stored = {name: sources[key] for key, name in names.items()}
    layers = linears.choose(model, stored.keys(), scheme, list(ignore))
    tensors = {layer["name"]: stored[f"{layer['name']}.weight"] for layer in layers if layer["quantized"]}
    return {name: tensor.read().view(tensor.shape) for name, tensor in tensors.items()}


def nearest(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return a weight (rows, columns) rounded to a grid, by its definition in fp64."""
    scale, zero_point = (part.T.double().unsqueeze(-1) for part in grid)
    groups = weight.detach().double().view(*scale.shape[:2], -1)
    codes = ((groups - zero_point) / scale).round().clamp(-8, 7)
    return (codes * scale + zero_point).view_as(weight)
