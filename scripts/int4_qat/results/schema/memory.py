"""What measure_memory finds."""

from typing import TypedDict


class Prediction(TypedDict):
    """Gigabytes that the checkpoint's own numbers ask for."""

    weights_gb: dict[str, float]  # by the dtype in which they are stored
    cache_gb: float
    total_gb: float


class Memory(TypedDict):
    """memory.json: what a checkpoint needs."""

    peak_gb: float
    measure: str  # what the peak is of
    weights_gb: float
    checkpoint_gb: float
    predicted: Prediction
    dequantized: bool  # the weights in memory were not those on the disk
    int4_path: str | None
    generated_tokens: int
    dtype: str
    device: str
