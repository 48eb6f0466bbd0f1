"""The cache of the transformers engine on a GPU; what it measures on a CPU, and with vLLM: test_vllm.py."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from measure_latency import static_cache

PROMPT, NEW = 12, 8


@pytest.mark.parametrize("window", [16, PROMPT + NEW, 64])
def test_the_cache_changes_no_logits(window):
    torch.manual_seed(0)
    shapes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=16)
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        vocab_size=64, num_key_value_heads=2, sliding_window=window, layer_types=kinds, eos_token_id=None, **shapes
    )
    model = Gemma3ForCausalLM(config).eval()
    tokens = torch.arange(10, 10 + PROMPT).view(1, -1)
    options = dict(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, do_sample=False)
    options |= dict(return_dict_in_generate=True, output_logits=True)
    expected = model.generate(**options)
    cache = static_cache(config, PROMPT + NEW)
    assert any(cache.is_sliding) == (window < PROMPT + NEW)
    for _ in range(2):
        cache.reset()
        found = model.generate(**options, past_key_values=cache)
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits))
    assert config.layer_types == kinds
