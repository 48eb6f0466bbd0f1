"""What record_hidden_states finds of a variant in bf16, and evaluate_divergence of a quantized one."""

from typing import TypedDict


class Protocol(TypedDict):
    """How one text was read; figures of different protocols do not compare."""

    context: int  # tokens of a window, bos included
    limit: int | None  # tokens of the text that were read; all if None
    bos: str | None  # with which each window begins; without, a window's first token is not scored
    dtype: str  # of the forward passes and the logits
    sha256: str  # of the text


class Text(TypedDict):
    """How far a variant's predictions of one text are from the base's; means over the scored tokens."""

    tokens: int  # scored
    windows: int
    kl: float  # KL(base-bf16 || variant), nats a token
    kl_from_own_bf16: float | None  # KL(the same weights in bf16 || variant); None of a variant in bf16
    top1_agreement: float  # share of tokens where the likeliest next token is base-bf16's
    perplexity: float
    perplexity_of_base: float


class Divergence(TypedDict):
    """divergence.json; a row for each window is in divergence_samples.parquet."""

    texts: dict[str, Text]
    protocol: dict[str, Protocol]  # by text
    same_head: bool  # whether the variant's own head makes all logits; else base-bf16, or its own bf16, has another
    versions: dict[str, str]
    int4_path: str | None  # how int4 weights were computed with; None of a variant in bf16
    device: str
