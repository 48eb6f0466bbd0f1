"""Read and write the grids that calibration or training found for a bf16 checkpoint, on which the export rounds it."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from int4_qat.checkpoint import weight_files
from int4_qat.quantization import record
from int4_qat.quantization.int4 import AnyGrid, Grid, MovedGrid
from int4_qat.system.errors import InputError

# In a folder of its own, because engines take every safetensors file next to the weights for more weights.
FILE = Path("grids") / "grids.safetensors"
START = "start_"  # prefix of the parts of the grid on which codes are found, if training has moved the values since


def write(folder: Path, grids: dict[str, AnyGrid]) -> None:
    """Write the grids of some linears, by name, into a checkpoint's folder."""
    (folder / FILE).parent.mkdir(parents=True)
    tensors = {f"{name}.{part}": value for name, grid in grids.items() for part, value in parts_of(grid).items()}
    save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, folder / FILE)


def parts_of(grid: AnyGrid) -> dict[str, torch.Tensor]:
    """Return the tensors of a grid by their names in the file."""
    parts = {kind: getattr(grid, kind) for kind in Grid._fields}
    if isinstance(grid, MovedGrid):
        parts |= {START + kind: part for kind, part in grid.start._asdict().items()}
    return parts


def exist(folder: Path) -> bool:
    """Return whether a folder has grids."""
    return (folder / FILE).exists()


def of_training(adapter: Path, model: Path) -> Path:
    """Return the folder of the grids, if any, on which a training ended: learned ones, or those on which it began.

    Raise InputError if the training learned grids and the adapter has none.
    """
    if record.has_learned_grids(adapter) and not exist(adapter):
        raise InputError(
            f"{adapter / FILE}: expected the grids that the training learned, found none; re-run the training"
        )
    return adapter if exist(adapter) else model


def copy(source: Path, folder: Path) -> None:
    """Copy the grids of one folder, if it has any, into another."""
    if exist(source):
        (folder / FILE).parent.mkdir(parents=True)
        shutil.copyfile(source / FILE, folder / FILE)


def read(folder: Path) -> dict[str, AnyGrid]:
    """Return the grids of a checkpoint's linears by name; empty if each weight is on its own grid."""
    if not exist(folder):
        return {}
    stored = weight_files.read_header(folder / FILE)
    names = sorted(key.removesuffix(".scale") for key in stored if key.endswith(".scale"))

    def grid(name: str, prefix: str = "") -> Grid:
        tensors = (stored[f"{name}.{prefix}{kind}"] for kind in Grid._fields)
        return Grid(*(tensor.read().view(tensor.shape) for tensor in tensors))

    def any_grid(name: str) -> AnyGrid:
        has_moved = f"{name}.{START}scale" in stored
        return MovedGrid(*grid(name), grid(name, START)) if has_moved else grid(name)

    return {name: any_grid(name) for name in names}
