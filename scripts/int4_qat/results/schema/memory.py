"""Define the schema of memory.json, which measure_memory writes."""

from typing import TypedDict


class Prediction(TypedDict):
    """The gigabytes that follow from the checkpoint itself: its weights as stored, and the cache."""

    weights_gb: dict[str, float]  # by the dtype in which they are stored
    cache_gb: float
    total_gb: float


class Memory(TypedDict):
    """The content of memory.json: what a checkpoint needs in memory and on disk."""

    peak_gb: float
    measure: str  # what the peak measures
    weights_gb: float
    checkpoint_gb: float
    predicted: Prediction
    dequantized: bool  # whether the weights in memory were not those on disk
    int4_path: str | None
    generated_tokens: int
    dtype: str
    device: str
