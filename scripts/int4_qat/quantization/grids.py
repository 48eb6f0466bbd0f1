"""The grids that a checkpoint in bf16 is meant for: what calibration or training found, for the export to round on."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from int4_qat.checkpoint import weight_files
from int4_qat.quantization.int4 import Grid

# In a folder of its own: engines take every safetensors file beside the weights for more of them.
FILE = Path("grids") / "grids.safetensors"


def write(folder: Path, grids: dict[str, Grid]) -> None:
    """Write the grids of some linears, by their names, into a checkpoint's folder."""
    (folder / FILE).parent.mkdir(parents=True)
    tensors = {f"{name}.{part}": value for name, grid in grids.items() for part, value in grid._asdict().items()}
    save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, folder / FILE)


def exist(folder: Path) -> bool:
    """Return whether a folder has grids."""
    return (folder / FILE).exists()


def of_training(adapter: Path, model: Path) -> Path:
    """Return the folder that has the grids on which a training ended, if any: learned ones, or those where it began."""
    return adapter if exist(adapter) else model


def copy(source: Path, folder: Path) -> None:
    """Give a folder the grids of another one, if that has any."""
    if exist(source):
        (folder / FILE).parent.mkdir(parents=True)
        shutil.copyfile(source / FILE, folder / FILE)


def read(folder: Path) -> dict[str, Grid]:
    """Return the grids of a checkpoint's linears by their names; none if each weight is on its own."""
    if not exist(folder):
        return {}
    stored = weight_files.read_header(folder / FILE)
    names = sorted({key.rpartition(".")[0] for key in stored})

    def part(name: str, kind: str) -> torch.Tensor:
        tensor = stored[f"{name}.{kind}"]
        return tensor.read().view(tensor.shape)

    return {name: Grid(*(part(name, kind) for kind in Grid._fields)) for name in names}
