"""Test that the linear with the deployed weight is a valid PyTorch operator for each kind of grid."""

import pytest
import torch

from int4_qat.quantization import int4
from int4_qat.quantization.int4 import MovedGrid
from int4_qat.training import merged_linear
from int4_qat.training.learned_grid import LearnedGrid
from programs import SCHEMES

ROWS, COLUMNS, RANK, TOKENS = 32, 128, 4, (2, 6)


def grid_of(kind, weight, scheme):
    start = int4.quantize(weight, scheme).grid
    if kind == "moved":
        return MovedGrid(start.scale * 1.125, start.zero_point, start)
    return {"own": None, "given": start, "learned": LearnedGrid(start, scheme)}[kind]


@pytest.mark.parametrize("kind", ["own", "given", "moved", "learned"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pytorch_finds_no_fault_with_the_operator(scheme, kind):
    """opcheck tests the shapes without data and the gradients under a compiler, and that no input is modified."""
    torch.manual_seed(0)
    scheme = SCHEMES[scheme]
    weight, a, b = torch.randn(ROWS, COLUMNS), torch.randn(RANK, COLUMNS), torch.randn(ROWS, RANK)
    given = [torch.randn(*TOKENS, COLUMNS, requires_grad=True), weight, a.requires_grad_(), b.requires_grad_(), 0.5]
    parts = merged_linear.parts_of(grid_of(kind, weight, scheme))
    torch.library.opcheck(
        torch.ops.int4_qat.merged_linear.default, (*given, scheme.group_size, scheme.zero_point, parts)
    )
