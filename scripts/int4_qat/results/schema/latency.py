"""What measure_latency finds."""

from typing import TypedDict


class Batch(TypedDict):
    """The times of one batch size."""

    batch_size: int
    mean_s: float
    repeat_means_s: list[float]
    std_s: float | None  # between repeats, if there are several
    percentiles_s: dict[str, float]
    latencies_s: list[float]
    tokens_per_s: float
    bandwidth_limit_percent: float | None  # of the time, what reading the weights takes; None where it is not known


class Latency(Batch):
    """latency.json: how long requests take; the first batch size stands for all."""

    batches: list[Batch]
    engine: str
    engine_version: str
    vllm_arguments: list[str]
    input_len: int
    output_len: int
    warmup: int
    iterations: int
    repeats: int
    dtype: str
    dequantized: bool  # the weights in memory were not those on the disk
    int4_path: str | None
    device: str
