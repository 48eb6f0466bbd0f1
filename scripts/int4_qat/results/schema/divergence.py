"""What evaluate_divergence finds."""

from typing import TypedDict


class Text(TypedDict):
    """How far a variant's predictions of one text are from the base's; means over the scored tokens."""

    tokens: int  # scored
    windows: int
    kl: float  # KL(base-bf16 || variant), nats a token
    kl_from_own_bf16: float | None  # KL(the same weights in bf16 || variant)
    top1_agreement: float  # share of tokens where the likeliest next token is base-bf16's
    perplexity: float
    perplexity_of_base: float


class Divergence(TypedDict):
    """divergence.json; a row for each window is in divergence_samples.parquet."""

    texts: dict[str, Text]
    protocol: dict[str, dict]  # context, limit, bos, dtype and SHA-256 of each text
    same_head: bool  # whether the base's logits are made by the variant's own head
    versions: dict[str, str]
    int4_path: str | None
    device: str
