"""Round to nearest: every weight gets the nearest value of its group's own grid, as in training.

The config check asks what a method needs each time Snakemake starts, so torch is imported only where it is used.
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
    """Yield the rows of each block of a weight and their quantized values; blocks have rows and their bf16 values."""
    from int4_qat.quantization import int4

    for rows, values in blocks:
        yield rows, int4.quantize(values, scheme)
