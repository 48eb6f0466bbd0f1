"""Train grids: the values of each group move away from those at which training starts.

    scale = scale_0 · exp(log_scale)      zero point = (zero_point_0 / scale_0 + 15 · shift) · scale

so that a change of either parameter moves the ends of the range by as much; only a float zero point has a shift. Codes
are found on the grid at which training starts, so that a moving scale changes no code. What a calibration has made of
the rounding errors is thus preserved, and the gradient is exactly the gradient of code · scale + zero_point. Training
sees scale and zero point as they are stored; the gradient passes straight through that rounding.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from int4_qat.checkpoint import blocks
from int4_qat.quantization import int4, schemes
from int4_qat.quantization.int4 import Grid, MovedGrid
from int4_qat.quantization.schemes import Scheme

SEPARATOR = "/"  # in place of the dot, which a module's own name cannot have
# By default the compiler leaves out the rounding to bfloat16 between its steps, and divides less exactly on a GPU.
EXACT = {"emulate_precision_casts": True, "eager_numerics.division_rounding": True}
FILE = "learned_grids.safetensors"  # in a checkpoint of the training


class LearnedGrid(torch.nn.Module):
    """The grid of one linear; its parameters are fp32 (columns / group_size, rows)."""

    def __init__(self, start: Grid, scheme: Scheme):
        super().__init__()
        self.scheme, self.start = scheme, start
        self.register_buffer("scale", start.scale.float(), persistent=False)
        self.register_buffer("offset", start.zero_point.float() / self.scale, persistent=False)
        self.log_scale = torch.nn.Parameter(torch.zeros_like(self.scale))
        has_shift = scheme.zero_point == schemes.FLOAT
        self.shift = torch.nn.Parameter(torch.zeros_like(self.scale), requires_grad=has_shift)

    def stored(self) -> MovedGrid:
        """Return the grid in the dtype in which it is stored."""
        parameters = (part.detach() for part in (self.log_scale, self.shift, self.scale, self.offset))
        return MovedGrid(*(part.to(blocks.STORAGE_DTYPE) for part in run(seen, *parameters, self.scheme)), self.start)


def seen(
    log_scale: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point as they are stored, in fp32, from where they start and how far they have moved."""
    stored = int4.nearest_grid(scale * log_scale.exp(), offset + int4.LEVELS * shift, scheme)
    return stored.scale.float(), stored.zero_point.float()


def gradients(
    log_scale: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor,
    of_scale: torch.Tensor,
    of_zero_point: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of log_scale and shift, given those of scale and zero point before they are rounded."""
    moved, steps = scale * log_scale.exp(), offset + int4.LEVELS * shift
    return moved * (of_scale + steps * of_zero_point), int4.LEVELS * moved * of_zero_point


def run(function: Callable, *arguments: torch.Tensor | Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Call a function, compiled on a GPU; autocast is off, so that it is not compiled twice, with and without it."""
    with torch.autocast(arguments[0].device.type, enabled=False):
        return (compiled(function) if arguments[0].is_cuda else function)(*arguments)


@functools.cache
def compiled(function: Callable) -> Callable:
    """Return a function compiled into fewer kernels than its chain of passes over a grid, with the same rounding.

    It is compiled for as many shapes of grids as `compilation` allows, 64, then runs uncompiled, and says so; a decoder
    has about five.
    """
    return torch.compile(function, dynamic=False, options=EXACT)


def attach(model: torch.nn.Module, grids: dict[str, LearnedGrid]) -> None:
    """Make the learned grids of a base model's linears, given by name, a part of that model."""
    model.learned_grids = torch.nn.ModuleDict({name.replace(".", SEPARATOR): grid for name, grid in grids.items()})


def of_model(model: torch.nn.Module) -> dict[str, LearnedGrid]:
    """Return the learned grids of a base model by the names of its linears; empty if it has none."""
    found = getattr(model, "learned_grids", {})
    return {name.replace(SEPARATOR, "."): grid for name, grid in found.items()}


def parameters_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the trained parameters of all learned grids."""
    found = (parameter for grid in of_model(model).values() for parameter in grid.parameters())
    return [parameter for parameter in found if parameter.requires_grad]


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write the parameters of the learned grids, if there are any, into a checkpoint; peft leaves them out."""
    grids = of_model(model)
    if grids:
        tensors = {f"{name}.{key}": value for name, grid in grids.items() for key, value in grid.state_dict().items()}
        save_file({key: value.cpu() for key, value in tensors.items()}, folder / FILE)


def load(model: torch.nn.Module, folder: Path) -> None:
    """Load the parameters of the learned grids from a checkpoint."""
    grids = of_model(model)
    if grids:
        tensors = load_file(folder / FILE)
        for name, grid in grids.items():
            grid.load_state_dict({key: tensors[f"{name}.{key}"] for key in grid.state_dict()})
