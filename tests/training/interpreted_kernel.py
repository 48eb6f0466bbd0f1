"""Test the kernels of the deployed weight with Triton's interpreter on a CPU; test_gpu.py runs them on a GPU.

Triton is installed only in unsloth's environment, where test_merged_kernel.py runs this file. By hand:

    TRITON_INTERPRET=1 .venv-unsloth/bin/python -m pytest tests/training/interpreted_kernel.py
"""

import pytest
import torch

import calibrated
from int4_qat.checkpoint import blocks
from int4_qat.quantization import int4, schemes
from int4_qat.quantization.int4 import MovedGrid
from int4_qat.training import merged_kernel
from weights import normal

each_scheme = pytest.mark.parametrize("zero_point", [schemes.FLOAT, schemes.INTEGER, None])
ROWS, COLUMNS, SCALING = 70, 256, 0.02  # not a multiple of a program's rows: the last of three programs is not full


def operands(dtype, rank):
    return normal(ROWS, COLUMNS).to(dtype), normal(rank, COLUMNS, seed=1), normal(ROWS, rank, seed=2)


def grid_of(kind, weight, scheme):
    start = calibrated.grid_near(weight, scheme)
    moved = MovedGrid(1.1 * start.scale.float(), start.zero_point.float(), start)
    return {"own": None, "given": start, "moved": moved}[kind]


@each_scheme
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("rank", [8, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["own", "given", "moved"])
def test_a_weight_is_that_of_the_export_bit_for_bit(zero_point, group_size, rank, dtype, kind):
    weight, a, b = operands(dtype, rank)
    scheme = schemes.int4(group_size, zero_point)
    grid = grid_of(kind, weight, scheme)
    merged = blocks.merge(weight, a, b, SCALING)
    expected = int4.dequantize(int4.quantize(merged, scheme, grid)).to(dtype)
    assert torch.equal(merged_kernel.fake_quantize(weight, a, b, SCALING, scheme, grid), expected)


@each_scheme
@pytest.mark.parametrize("kind", ["given", "moved"])
def test_the_gradients_of_a_grid_are_those_of_its_values(zero_point, kind):
    weight, a, b = operands(torch.bfloat16, 8)
    scheme, upstream = schemes.int4(128, zero_point), normal(ROWS, COLUMNS, seed=3)
    grid = grid_of(kind, weight, scheme)
    codes = int4.quantize(blocks.merge(weight, a, b, SCALING), scheme, grid).codes
    scale, zero = (part.float().requires_grad_() for part in (grid.scale, grid.zero_point))
    (int4.dequantize(int4.Int4Weight(codes, scale, zero)) * upstream).sum().backward()
    found = merged_kernel.grid_gradient(weight, a, b, SCALING, scheme, grid, upstream)
    torch.testing.assert_close(found, (scale.grad, zero.grad))
