"""Derive memory reductions and speedups from a variant's measurements and those of base-bf16."""

import math

from int4_qat.results.schema.latency import Batch, Latency
from int4_qat.results.schema.memory import Memory
from int4_qat.system.errors import InputError

DEQUANTIZED = "the quantized weights were converted to floats"


TIMES = ("batch_size", "mean_s", "std_s", "percentiles_s", "bandwidth_limit_percent")  # keys of one batch size


def memory_reductions(memory: Memory, baseline: Memory) -> dict:
    """Return the shares by which a variant reduces the baseline's peak memory and its size on disk."""
    return {
        "reduction": 1 - memory["peak_gb"] / baseline["peak_gb"],
        "checkpoint_reduction": 1 - memory["checkpoint_gb"] / baseline["checkpoint_gb"],
    }


def speedups(latency: Latency, baseline: Latency) -> dict:
    """Return the speedup of the first batch size, and the times and speedups of all batch sizes.

    Dequantized weights have no speedup, since what was timed is not what is deployed. Raise InputError if the batch
    sizes differ.
    """
    sizes, expected = ([batch["batch_size"] for batch in each["batches"]] for each in (latency, baseline))
    if sizes != expected:
        raise InputError(f"latency.json: batches: expected the batch sizes {expected} of base-bf16, found {sizes}")
    pairs = zip(latency["batches"], baseline["batches"], strict=True)
    no_speedup = {"speedup": None, "speedup_std": None}
    batches = [
        {key: batch[key] for key in TIMES} | (no_speedup if latency["dequantized"] else speedup(batch, plain))
        for batch, plain in pairs
    ]
    first = {key: batches[0][key] for key in no_speedup}
    return first | {"no_speedup": DEQUANTIZED if latency["dequantized"] else None, "batches": batches}


def speedup(batch: Batch, baseline: Batch) -> dict:
    """Return the speedup of one batch size; its relative spread adds those of both measurements in quadrature."""
    ratio = baseline["mean_s"] / batch["mean_s"]
    spreads = [None if each["std_s"] is None else each["std_s"] / each["mean_s"] for each in (batch, baseline)]
    return {"speedup": ratio, "speedup_std": None if None in spreads else ratio * math.hypot(*spreads)}
