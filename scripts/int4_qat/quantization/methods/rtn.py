"""Round to nearest: every weight gets the nearest value of its group's own grid, as in training.

The check of the config asks what a method needs at each start of Snakemake, so torch is imported where it is used.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from int4_qat.quantization.schemes import Scheme

if TYPE_CHECKING:
    import torch

    from int4_qat.quantization import int4

NEEDS = ()  # neither texts nor a GPU


def quantize(
    blocks: Iterable[tuple[slice, "torch.Tensor"]], scheme: Scheme
) -> Iterator[tuple[slice, "int4.Int4Weight"]]:
    """Yield the rows of each block of a weight, quantized; blocks are rows and their values in bf16."""
    from int4_qat.quantization import int4

    for rows, values in blocks:
        yield rows, int4.quantize(values, scheme)
