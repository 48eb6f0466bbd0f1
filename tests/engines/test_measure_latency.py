"""Test the figures of measure_latency that need no engine."""

import pytest
import torch

import families
import measure_latency
from int4_qat.engines import inference


@pytest.mark.parametrize(
    ("family", "left_out"),
    [("llama", ["model.embed_tokens"]), ("llama-tied", []), ("gpt-neox", ["gpt_neox.embed_in"])],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_needs_all_weights_but_an_embedding_that_is_no_head(untrained, tmp_path, family, left_out, dtype):
    folder = families.write(family, untrained / "model", tmp_path / "model")
    model = inference.load_model(folder, dtype, "cpu")
    needed = sum(weight.nbytes for weight in model.parameters())
    needed -= sum(model.get_submodule(name).weight.nbytes for name in left_out)
    assert measure_latency.text_bytes(folder, dtype) == needed
