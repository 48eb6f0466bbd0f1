"""Write out the attention of one token, so that PyTorch's compiler fuses it with what surrounds it.

A decoding step asks each layer for the attention of one new token to all earlier ones. The kernels of
scaled_dot_product_attention are made for many tokens. For one, their start and the arrangement of their inputs take
longer than reading keys and values (docs/gpu.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

REPLACED = "sdpa"  # transformers' name; models that use another attention keep it


@contextmanager
def compiled_in() -> Iterator[None]:
    """Let models that are compiled in this block attend with one token by operations that are written out."""
    ALL_ATTENTION_FUNCTIONS[REPLACED] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[REPLACED]  # transformers' own is below


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Return the attention (texts, tokens, heads, size) of query (texts, heads, tokens, size), as transformers asks it.

    key and value are (texts, key heads, length, size), and a mask is (texts, 1, tokens, length): True, or 0, for what
    is seen. Anything but one token in a compiled model is transformers' own function.
    """
    special = options.get("position_bias") is not None or options.get("dropout")
    if query.shape[2] > 1 or special or not torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    return one_token(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def one_token(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Return softmax(scaling q kᵀ + mask) v for one token, (texts, 1, heads, value size), computed in fp32.

    query is (texts, heads, 1, size); key and value have the same or a divisor of its number of heads.
    """
    texts, heads, _, size = query.shape
    grouped = query.reshape(texts, key.shape[1], -1, 1, size).float()
    scores = (grouped * key.unsqueeze(2).float()).sum(-1) * scaling  # texts, key heads, heads of each, length
    if mask is not None:
        seen = mask[:, :, :, : key.shape[2]]
        scores = scores.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
    shares = torch.softmax(scores, dim=-1).unsqueeze(-1)
    found = (shares * value.unsqueeze(2).float()).sum(-2)
    return found.reshape(texts, 1, heads, -1).to(query.dtype)
