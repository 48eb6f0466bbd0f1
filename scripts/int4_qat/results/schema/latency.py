"""Define the schema of latency.json, which measure_latency writes."""

from typing import TypedDict


class Batch(TypedDict):
    """The times measured for one batch size."""

    batch_size: int
    mean_s: float
    repeat_means_s: list[float]
    std_s: float | None  # between repeats, if there are several
    percentiles_s: dict[str, float]
    latencies_s: list[float]
    tokens_per_s: float
    bandwidth_limit_percent: float | None  # share of the time that reading the weights takes; None if unknown
    cuda_graph: bool | None  # whether transformers' decoding step was replayed as a CUDA graph; None with vLLM


class Latency(Batch):
    """The content of latency.json: how long requests take; the keys of Batch are those of the first batch size."""

    batches: list[Batch]
    engine: str
    engine_version: str
    vllm_arguments: list[str]  # the config's, without those that spread the model over several GPUs
    gpus: int
    input_len: int
    output_len: int
    warmup: int
    iterations: int
    repeats: int
    dtype: str
    dequantized: bool  # whether the weights in memory were not those on disk
    int4_path: str | None
    device: str
