"""Compare the attention of one token with PyTorch's scaled_dot_product_attention, alone and in a compiled model."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from int4_qat.engines import one_token_attention
from int4_qat.engines.decoding import GreedyDecoder
from random_models import MODELS, random_model

TEXTS, LENGTH, SIZE = 3, 19, 16
SEEN = torch.rand(TEXTS, 1, 1, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.6
MASKS = {"none": None, "seen": SEEN, "added": torch.zeros(SEEN.shape).masked_fill(~SEEN, -1e9)}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_pytorchs(heads, key_heads, mask, dtype):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(TEXTS, heads, 1, SIZE, generator=generator).to(dtype)
    key, value = (torch.randn(TEXTS, key_heads, LENGTH, SIZE, generator=generator).to(dtype) for _ in range(2))
    added = mask.double() if mask is not None and mask.is_floating_point() else mask
    expected = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), added, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    found = one_token_attention.one_token(query, key, value, mask, 0.3)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    assert found.double() == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 2**-8, abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_step_continues_as_the_model_does(name):
    """The compiler's front end alone runs here; tests/kernels/test_gpu.py tests what a GPU's makes of it."""
    torch.compiler.reset()  # one function is compiled at most eight times
    kind, shapes = MODELS[name]
    model = random_model(kind, **shapes)
    prompts = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = GreedyDecoder(model, 22)(prompts, 10)
    called = []

    def backend(graph, _):
        called.extend(node.target for node in graph.graph.nodes)
        return graph

    decoder = GreedyDecoder(model, 22)
    decoder.start(prompts)
    decoder.step = torch.compile(decoder.next_token, dynamic=False, backend=backend, fullgraph=True)
    with one_token_attention.compiled_in():
        found = decoder(prompts, 10)
    assert torch.equal(found, expected)
    assert called
    assert scaled_dot_product_attention not in called


def test_outside_the_block_transformers_own_is_back():
    own = ALL_ATTENTION_FUNCTIONS[one_token_attention.REPLACED]
    with one_token_attention.compiled_in():
        assert ALL_ATTENTION_FUNCTIONS[one_token_attention.REPLACED] is one_token_attention.attend
    assert ALL_ATTENTION_FUNCTIONS[one_token_attention.REPLACED] is own
