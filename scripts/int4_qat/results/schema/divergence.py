"""Define the schema of divergence.json, which record_hidden_states (bf16) and evaluate_divergence (quantized) write."""

from typing import TypedDict


class Protocol(TypedDict):
    """The way one text was read; figures of different protocols are not comparable."""

    context: int  # tokens of a window, bos included
    limit: int | None  # tokens of the text that were read; all if None
    bos: str | None  # the token that begins each window; without one, a window's first token is not scored
    dtype: str  # of the forward passes and the logits
    sha256: str  # of the text


class Text(TypedDict):
    """The distance of a variant's predictions of one text from the base's: means over the scored tokens."""

    tokens: int  # that are scored
    windows: int
    kl: float  # KL(base-bf16 || variant), nats per token
    kl_from_own_bf16: float | None  # KL(the same weights in bf16 || variant); None for a variant in bf16
    top1_agreement: float  # share of tokens whose most likely next token is base-bf16's too
    perplexity: float
    perplexity_of_base: float


class Divergence(TypedDict):
    """The content of divergence.json; divergence_samples.parquet has a row for each window."""

    texts: dict[str, Text]
    protocol: dict[str, Protocol]  # by text
    same_head: bool  # whether all logits come from the variant's head; false if base-bf16 or its own bf16 has another
    versions: dict[str, str]
    int4_path: str | None  # the compute path of int4 weights; None for a variant in bf16
    device: str
