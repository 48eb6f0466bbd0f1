"""What the windows of held-out texts say of the variants: means a token, their intervals, and what was recovered.

Intervals are of a bootstrap of the windows, the same for all variants, so that differences are paired. Recovered is
(x - q) / (b - q), of base-bf16 b and the quantized base q: of the divergence, which is 0 for b, and of the logarithm of
the perplexity, since lower is better and ratios count.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from int4_qat.results import statistics

KEY = ["text", "window"]


def resample(windows: int) -> np.ndarray:
    """Return how often each window is drawn: resamples x windows; the first row draws each once."""
    generator = np.random.default_rng(statistics.SEED)
    draws = generator.multinomial(windows, np.full(windows, 1 / windows), size=statistics.RESAMPLES)
    return np.vstack([np.ones(windows), draws])


def means(rows: pd.DataFrame, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Return means over the tokens of one text's windows: one value, then one for each resample."""
    tokens = draws @ rows["tokens"].to_numpy(float)
    sums = {name: draws @ rows[name].to_numpy(float) / tokens for name in ("kl", "same_top1", "loss", "base_loss")}
    found = {
        "kl": sums["kl"],
        "top1_agreement": sums["same_top1"],
        "perplexity": np.exp(sums["loss"]),
        "perplexity_ratio": np.exp(sums["loss"] - sums["base_loss"]),
    }
    if "kl_from_own_bf16" in rows:
        found["kl_from_own_bf16"] = draws @ rows["kl_from_own_bf16"].to_numpy(float) / tokens
    return found


def of_variants(samples: Mapping[str, pd.DataFrame], references: Mapping[str, str], bf16: str) -> dict[str, dict]:
    """Return by variant and text: each mean with its interval, and what was recovered of KL and perplexity.

    samples are divergence_samples.parquet of each variant.
    """
    texts = samples[bf16]["text"].unique()
    found: dict[str, dict] = {name: {} for name in samples}
    for text in texts:
        rows = {name: table[table["text"] == text] for name, table in samples.items()}
        draws = resample(len(rows[bf16]))
        drawn = {name: means(table, draws) for name, table in rows.items()}
        for name, values in drawn.items():
            quantized = drawn[references[name]]
            found[name][text] = {key: with_interval(value) for key, value in values.items()} | {
                "recovered": {
                    "kl": recovered(values["kl"], np.zeros(len(draws)), quantized["kl"]),
                    "perplexity": recovered(*(np.log(each["perplexity"]) for each in (values, drawn[bf16], quantized))),
                }
            }
    return found


def with_interval(values: np.ndarray) -> dict:
    """Return a value and its interval, of the value and its resamples."""
    return {"value": float(values[0]), "ci95": statistics.interval(values[1:])}


def recovered(score: np.ndarray, bf16: np.ndarray, quantized: np.ndarray) -> dict:
    """Return (score - quantized) / (bf16 - quantized) with its interval; None where the cost is not resolved from zero.

    Lower is better: the quantized base costs quantized - bf16.
    """
    cost = quantized - bf16
    low = statistics.interval(cost[1:])[0]
    if low <= 0:
        return {"value": None, "ci95": None, "resolved": False}
    return with_interval((quantized - score) / cost) | {"resolved": True}
