"""Attention after a cache, without a mask, gives lm-eval's scores; on a GPU FlashAttention computes it."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from int4_qat.evaluation import last_position, prefix_attention, stock_scores
from test_last_position import PREFIX, PROVEN, VARIANTS, ask, engine, likelihoods, make_model, tokenizer

__all__ = ["tokenizer"]  # the fixture
NARROW = [pair for pair in (*PROVEN.items(), *VARIANTS) if pair[0] != "gemma2"]  # whose attention caps its logits


def as_documented(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """Compute what PyTorch's documentation says of varlen_attn, row by row, with a mask."""
    left, right = window_size
    assert right == 0
    found = []
    for row in range(len(cu_seq_q) - 1):
        asked, known = (slice(*starts[row : row + 2]) for starts in (cu_seq_q, cu_seq_k))
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query[asked], key[known], value[known]))
        behind = torch.arange(k.shape[2] - q.shape[2], k.shape[2])[:, None] - torch.arange(k.shape[2])
        mask = (behind >= 0) & ((behind <= left) | (left < 0))
        mask = mask.to(q.device)
        found.append(scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)[0].transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize(("model_type", "settings"), NARROW)
def test_scores_after_a_prefix_are_lm_evals(tokenizer, model_type, settings, monkeypatch):
    calls = []
    monkeypatch.setattr(prefix_attention, "varlen_attn", lambda *a, **b: calls.append(b) or as_documented(*a, **b))
    monkeypatch.setattr(prefix_attention, "fits", lambda model, cache: True)
    model = make_model(model_type, settings)
    requests = ask(PREFIX)
    expected = likelihoods(engine(stock_scores.StockScores, model, tokenizer), requests)
    ours = engine(last_position.LastPosition, model, tokenizer)
    torch.testing.assert_close(likelihoods(ours, requests), expected, rtol=2e-5, atol=2e-5)
    assert calls
    assert model.config.get_text_config()._attn_implementation == "sdpa"


def test_it_is_for_a_gpu_alone(tokenizer):
    ours = engine(last_position.LastPosition, make_model(*NARROW[0], torch.bfloat16), tokenizer)
    assert not prefix_attention.fits(ours.model, ours.read((1, 2, 3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("width", [16, 64, 128, 256])
def test_flash_attention_computes_what_is_documented(width, window, monkeypatch):
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, tokens, width, generator=generator, device="cuda", dtype=torch.bfloat16)
        for heads, tokens in ((8, 30), (2, 100), (2, 100))
    )
    found, _ = prefix_attention.attend(None, query, key, value, None, 0.1, window)
    monkeypatch.setattr(prefix_attention, "varlen_attn", as_documented)
    expected, _ = prefix_attention.attend(None, query.double(), key.double(), value.double(), None, 0.1, window)
    assert torch.linalg.vector_norm(found - expected) < 0.01 * torch.linalg.vector_norm(expected)
