"""Derive memory reductions and speedups from a variant's measurements and those of base-bf16."""

import math

from int4_qat.results.schema.latency import Batch, Latency
from int4_qat.results.schema.memory import Memory
from int4_qat.system.errors import InputError

DEQUANTIZED = "the quantized weights were converted to floats"
ONE_GRAPH = "only one of the model and base-bf16 was decoded with a CUDA graph"


TIMES = ("batch_size", "mean_s", "std_s", "percentiles_s", "bandwidth_limit_percent")  # keys of one batch size


def memory_reductions(memory: Memory, baseline: Memory) -> dict:
    """Return the shares by which a variant reduces the baseline's peak memory and its size on disk."""
    return {
        "reduction": 1 - memory["peak_gb"] / baseline["peak_gb"],
        "checkpoint_reduction": 1 - memory["checkpoint_gb"] / baseline["checkpoint_gb"],
    }


def speedups(latency: Latency, baseline: Latency) -> dict:
    """Return the speedup of the first batch size, and the times and speedups of all batch sizes.

    There is none if why_no_speedup has a reason. Raise InputError if the batch sizes differ.
    """
    sizes, expected = ([batch["batch_size"] for batch in each["batches"]] for each in (latency, baseline))
    if sizes != expected:
        raise InputError(f"latency.json: batches: expected the batch sizes {expected} of base-bf16, found {sizes}")
    pairs = zip(latency["batches"], baseline["batches"], strict=True)
    no_speedup, reason = {"speedup": None, "speedup_std": None}, why_no_speedup(latency, baseline)
    batches = [
        {key: batch[key] for key in TIMES} | (no_speedup if reason else speedup(batch, plain)) for batch, plain in pairs
    ]
    first = {key: batches[0][key] for key in no_speedup}
    return first | {"no_speedup": reason, "batches": batches}


def why_no_speedup(latency: Latency, baseline: Latency) -> str | None:
    """Return why two latencies do not show what int4 does to the speed, or None if they do.

    With dequantized weights, what was timed is not what is deployed. If only one was decoded with a CUDA graph, int4 is
    not the only difference.
    """
    if latency["dequantized"]:
        return DEQUANTIZED
    graphs, expected = ([batch["cuda_graph"] for batch in each["batches"]] for each in (latency, baseline))
    return None if graphs == expected else ONE_GRAPH


def speedup(batch: Batch, baseline: Batch) -> dict:
    """Return the speedup of one batch size; its relative spread adds those of both measurements in quadrature."""
    ratio = baseline["mean_s"] / batch["mean_s"]
    spreads = [None if each["std_s"] is None else each["std_s"] / each["mean_s"] for each in (batch, baseline)]
    return {"speedup": ratio, "speedup_std": None if None in spreads else ratio * math.hypot(*spreads)}
