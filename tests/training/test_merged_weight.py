"""Test that the deployed weight that training recomputes equals the export's, also in blocks and under autocast."""

import pytest
import torch

import calibrated
from int4_qat.checkpoint import blocks
from int4_qat.quantization import int4
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
