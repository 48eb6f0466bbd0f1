"""Let the questions of a batch attend to one copy of their common prefix, and to themselves.

The cache of a prefix of 1,400 tokens takes 0.5 GB for Gemma 3 12B. `SharedPrefix` lays it before each question for one
layer at a time.

On a GPU, FlashAttention computes this attention without a mask. Where queries follow a cache, transformers gives
PyTorch's attention a mask, and FlashAttention takes none. The kernel that PyTorch then chooses reached 25 TFLOP/s with
heads of 256 values on an H200 (docs/gpu-details.md). FlashAttention itself aligns queries with the end of the keys, as
a causal mask after a cache does, and lets a token see `left` tokens before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, Cache, PreTrainedModel

NAME = "flash_after_cache"  # without a mask function of this name, transformers makes no mask
# FlashAttention's limits: a head's width, and the GPU
WIDEST, MULTIPLE = 256, 8
CAPABILITY = (8, 0)


class SharedPrefix(Cache):
    """The cache (one row) of a prefix that each row of a batch continues; nothing is added to it."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_, **__
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values (rows, heads, tokens, width), with the prefix ahead of each row's own."""
        kept = self.layers[layer_idx]
        return before(kept.keys, keys), before(kept.values, values)


def before(prefix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return rows (rows, heads, tokens, width) that each begin with the prefix, which is one such row."""
    return torch.cat([prefix.expand(len(rows), -1, -1, -1), rows], dim=2)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Return the attention (rows, queries, heads, width) of queries that are the last tokens of their rows.

    query is (rows, heads, queries, width); key and value are (rows, their heads, keys, width).
    """
    rows, heads, queries, width = query.shape
    keys = key.shape[2]
    starts = torch.arange(rows + 1, dtype=torch.int32, device=query.device)
    left = -1 if sliding_window is None else sliding_window - 1
    found = varlen_attn(
        *(tensor.transpose(1, 2).reshape(-1, tensor.shape[1], width) for tensor in (query, key, value)),
        starts * queries,
        starts * keys,
        queries,
        keys,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=True,
    )
    return found.view(rows, queries, heads, width), None


AttentionInterface.register(NAME, attend)


def runs_on(device: torch.device) -> bool:
    """Return whether FlashAttention runs on a device."""
    on_nvidia = device.type == "cuda" and torch.version.hip is None
    return on_nvidia and torch.cuda.get_device_capability(device) >= CAPABILITY


def fits(model: PreTrainedModel, cache) -> bool:
    """Return whether FlashAttention, where it runs, can compute the attention of a model after this cache."""
    text = model.config.get_text_config()
    return (
        model.dtype == torch.bfloat16
        and text._attn_implementation == "sdpa"
        and getattr(text, "attn_logit_softcapping", None) is None
        and all(layer.keys.shape[-1] <= WIDEST and layer.keys.shape[-1] % MULTIPLE == 0 for layer in cache.layers)
    )


@contextmanager
def chosen(model: PreTrainedModel, cache) -> Iterator[None]:
    """Let a model attend in this way inside the block, where it continues a cache for which FlashAttention fits."""
    text = model.config.get_text_config()
    before = text._attn_implementation
    if cache is not None and runs_on(model.device) and fits(model, cache):
        text._attn_implementation = NAME
    try:
        yield
    finally:
        text._attn_implementation = before
