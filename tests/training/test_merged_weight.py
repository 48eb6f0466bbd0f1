"""The deployed weight, made anew at each step: as the export makes it, in blocks, under autocast, and compiled."""

import shutil

import pytest
import torch

import calibrated
from int4_qat.checkpoint import blocks
from int4_qat.quantization import int4, schemes
from int4_qat.training import merged_weight
from programs import INT4, SCHEMES
from weights import normal


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_blocks_of_rows_are_the_whole(monkeypatch, scheme):
    w, a, b = normal(100, 256), normal(8, 256, seed=1), normal(100, 8, seed=2)
    whole = int4.dequantize(int4.quantize((w + 0.5 * b @ a).to(torch.bfloat16), scheme))
    monkeypatch.setattr(blocks, "CACHED_WEIGHTS", 256 * 7)
    assert torch.equal(merged_weight.fake_quantize_merged(w, a, b, 0.5, scheme), whole)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_blocks_of_rows_take_their_rows_of_a_given_grid(monkeypatch, scheme):
    w, a, b = normal(100, 256), normal(8, 256, seed=1), normal(100, 8, seed=2)
    grid = calibrated.grid_near(w, scheme)
    whole = calibrated.nearest((w + 0.5 * b @ a).to(torch.bfloat16), grid).float()
    monkeypatch.setattr(blocks, "CACHED_WEIGHTS", 256 * 7)
    assert torch.equal(merged_weight.fake_quantize_merged(w, a, b, 0.5, scheme, grid), whole)


def test_autocast_changes_nothing():
    w, a, b = normal(100, 256).to(torch.bfloat16), normal(8, 256, seed=1), normal(100, 8, seed=2)
    expected = merged_weight.fake_quantize_merged(w, a, b, 0.02, INT4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(merged_weight.fake_quantize_merged(w, a, b, 0.02, INT4), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.skipif(" " in torch.__file__, reason="torch.compile links nothing on a CPU from a path with a space in it")
@pytest.mark.parametrize("zero_point", [schemes.FLOAT, schemes.INTEGER, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["own", "given", "moved"])
def test_the_compiled_kernels_round_as_the_export_does(dtype, zero_point, kind):
    scheme = schemes.int4(128, zero_point)
    w, a, b = normal(48, 256).to(dtype), normal(8, 256, seed=1), normal(48, 8, seed=2)
    start = calibrated.grid_near(w, scheme)
    values = int4.nearest_grid(1.1 * start.scale.float(), start.zero_point.float() / start.scale.float(), scheme)
    grid = {"own": None, "given": start, "moved": int4.MovedGrid(*values, start)}[kind]
    expected = int4.dequantize(int4.quantize(blocks.merge(w, a, b, 0.5), scheme, grid)).to(dtype)
    merged = merged_weight.compiled(blocks.merge)(w, a, b, 0.5)
    assert torch.equal(merged_weight.compiled(int4.fake_quantize)(merged, scheme, dtype, grid), expected)
    if kind == "moved":
        gradient = normal(48, 256, seed=3)
        found = merged_weight.compiled(int4.grid_gradient)(merged, scheme, grid, gradient)
        for ours, eager in zip(found, int4.grid_gradient(merged, scheme, grid, gradient), strict=True):
            torch.testing.assert_close(ours, eager)
