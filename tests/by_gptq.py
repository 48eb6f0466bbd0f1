"""Apply GPTQ to one weight, given the second moments of its inputs: rounded_together without the drift."""

import torch

from int4_qat.quantization import compensation
from int4_qat.quantization.int4 import Grid
from int4_qat.quantization.schemes import Scheme


def compensate(weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, Grid]:
    """Return the weight and the grid that GPTQ finds."""
    order = compensation.order_of(moments.diagonal(), scheme.group_size)
    return compensation.compensate(weight, compensation.inverse_of(moments), order, scheme)
