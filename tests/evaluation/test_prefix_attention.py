"""Attention after a cache, without a mask, gives lm-eval's scores; on a GPU FlashAttention computes it.

python -m pytest tests/evaluation/test_prefix_attention.py
"""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from int4_qat.evaluation import last_position, prefix_attention, stock_scores
from test_last_position import (
    GEMMA_4,
    HEAD,
    MIXED,
    PREFIX,
    PROVEN,
    VARIANTS,
    ask,
    engine,
    likelihoods,
    make_model,
    tokenizer,
)

__all__ = ["tokenizer"]  # the fixture
UNCAPPED = [pair for pair in (*PROVEN.items(), *VARIANTS) if pair[0] != "gemma2"]  # whose attention caps its logits


needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def by_masks(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """Compute what varlen_attn does, row by row, with a mask; the test on a GPU shows that it does this."""
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


@pytest.mark.parametrize(("model_type", "settings"), UNCAPPED)
def test_scores_after_a_prefix_are_lm_evals(tokenizer, model_type, settings, monkeypatch):
    calls = []
    monkeypatch.setattr(prefix_attention, "varlen_attn", lambda *a, **b: calls.append(b) or by_masks(*a, **b))
    monkeypatch.setattr(prefix_attention, "runs_on", lambda device: True)
    monkeypatch.setattr(prefix_attention, "fits", lambda model, cache: True)  # fp32 too, for a sharp comparison
    model = make_model(model_type, settings)
    requests = ask(PREFIX)
    expected = likelihoods(engine(stock_scores.StockScores, model, tokenizer), requests)
    ours = engine(last_position.LastPosition, model, tokenizer)
    torch.testing.assert_close(likelihoods(ours, requests), expected, rtol=2e-5, atol=2e-5)
    assert calls
    assert model.config.get_text_config()._attn_implementation == "sdpa"


@pytest.mark.parametrize(("model_type", "settings"), UNCAPPED)
def test_it_fits_models_in_bf16(tokenizer, model_type, settings):
    ours = engine(last_position.LastPosition, make_model(model_type, settings, torch.bfloat16), tokenizer)
    assert prefix_attention.fits(ours.model, ours.read((1, 2, 3)))


@pytest.mark.parametrize(
    ("model_type", "settings", "dtype"),
    [
        ("gemma3_text", MIXED, torch.float32),
        ("gemma3_text", MIXED | {"attn_implementation": "eager"}, torch.bfloat16),
        ("gemma2", MIXED, torch.bfloat16),
        ("gemma4_text", GEMMA_4 | {"global_head_dim": 264}, torch.bfloat16),
        ("qwen3", HEAD | {"head_dim": 20}, torch.bfloat16),
    ],
)
def test_it_does_not_fit_others(tokenizer, model_type, settings, dtype):
    ours = engine(last_position.LastPosition, make_model(model_type, settings, dtype), tokenizer)
    assert not prefix_attention.fits(ours.model, ours.read((1, 2, 3)))


def test_it_does_not_run_on_a_cpu():
    assert not prefix_attention.runs_on(torch.device("cpu"))


@needs_a_gpu
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("width", [16, 64, 128, 256])
def test_flash_attention_computes_what_masks_do(width, window, monkeypatch):
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, tokens, width, generator=generator, device="cuda", dtype=torch.bfloat16)
        for heads, tokens in ((8, 30), (2, 100), (2, 100))
    )
    found, _ = prefix_attention.attend(None, query, key, value, None, 0.1, window)
    monkeypatch.setattr(prefix_attention, "varlen_attn", by_masks)
    expected, _ = prefix_attention.attend(None, query.double(), key.double(), value.double(), None, 0.1, window)
    assert torch.linalg.vector_norm(found - expected) < 0.01 * torch.linalg.vector_norm(expected)


@needs_a_gpu
@pytest.mark.parametrize("model_type", ["gemma3", "mistral"])
def test_on_a_gpu_scores_are_those_with_a_mask(tokenizer, model_type, monkeypatch):
    model = make_model(model_type, PROVEN[model_type], torch.bfloat16).cuda()
    requests = ask(PREFIX)
    found = likelihoods(engine(last_position.LastPosition, model, tokenizer), requests)
    monkeypatch.setattr(prefix_attention, "runs_on", lambda device: False)
    expected = likelihoods(engine(last_position.LastPosition, model, tokenizer), requests)
    assert torch.linalg.vector_norm(found - expected) < 0.1 * torch.linalg.vector_norm(expected)
