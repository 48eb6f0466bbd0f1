"""Test what is known of a model's weights before they are loaded."""

import pytest
import torch

from int4_qat.checkpoint import loading, weight_files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_bytes_of_loaded_weights_are_those_of_the_parameters(untrained, dtype):
    model = loading.load(untrained / "model", dtype, "cpu")
    expected = sum(parameter.nbytes for parameter in model.parameters())  # tied weights count once
    assert weight_files.loaded_bytes(untrained / "model", dtype) == expected
