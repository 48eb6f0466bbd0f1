"""Compute intervals, paired differences and ratios for variants that were asked the same questions.

A table has one row per unit (a question, a document, a window of a text). Its index begins with the unit's stratum (its
subject, its task, its text); the sizes of the strata are fixed.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import scipy  # loads its modules when they are used: planning needs none

CONFIDENCE, RESAMPLES, SEED = 0.95, 10_000, 0
TAIL = (1 - CONFIDENCE) / 2
CHUNK = 2**24  # numbers drawn at once
NOT_RECOVERED = {
    "normalized_degradation": None,
    "recovered": None,
    "recovered_ci95": None,
    "recovered_resolved": False,
}


def wilson(right: int, questions: int) -> list[float]:
    """Return the interval of an accuracy (Wilson 1927); unlike the normal one, it has a width at 0% and 100% too."""
    return list(scipy.stats.binomtest(int(right), int(questions)).proportion_ci(CONFIDENCE, method="wilson"))


def resample(units: pd.DataFrame, resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Return bootstrapped sums by stratum, resamples x columns; each resample draws the same units for all columns.

    Units with the same values are interchangeable, so the draw is how often each such pattern occurs. The variation of
    a stratum of n units is scaled by sqrt(n / (n - 1)), so that small strata do not look too certain (Rao & Wu 1988). A
    stratum of a single unit does not vary.
    """
    generator = np.random.default_rng(SEED)
    sums = {}
    for stratum, rows in units.groupby(level=0):
        patterns, counts = np.unique(rows.to_numpy(), axis=0, return_counts=True)
        scale, patterns = np.sqrt(len(rows) / max(len(rows) - 1, 1)), patterns.astype(float)
        sums[stratum] = np.concatenate(
            [(counts + (draws - counts) * scale) @ patterns for draws in draw(generator, counts, resamples)]
        )
    return sums


def draw(generator: np.random.Generator, counts: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """Yield how often each pattern occurs, resamples x patterns, in blocks that fit in memory."""
    rows = max(1, CHUNK // len(counts))
    for start in range(0, resamples, rows):
        yield generator.multinomial(counts.sum(), counts / counts.sum(), size=min(rows, resamples - start))


def interval(resampled: np.ndarray) -> list[float]:
    """Return the percentile interval."""
    return np.quantile(resampled, [TAIL, 1 - TAIL]).tolist()


def degradation(score, bf16, quantized):
    """Return the card's normalized degradation."""
    return -(bf16 - score) / (bf16 - quantized)


def recovery(name: str, score: Mapping[str, float], resampled: pd.DataFrame, bf16: str, quantized: str) -> dict:
    """Return a variant's normalized degradation, recovered = 1 + that, and its interval, from scores (more is better).

    They are None if the cost of the quantization is not resolved. A resample in which quantization cost nothing bounds
    the ratio on neither side. If there are more such resamples than a tail of the interval holds, the interval is
    unbounded, as Fieller's (1954) is where the denominator may be zero.
    """
    cost = (resampled[bf16] - resampled[quantized]).to_numpy()
    costs = cost > 0
    ratio = np.divide(resampled[name] - resampled[quantized], cost, out=np.full(len(cost), np.inf), where=costs)
    low = np.quantile(np.where(costs, ratio, -np.inf), TAIL, method="lower")
    high = np.quantile(ratio, 1 - TAIL, method="higher")
    if not (np.isfinite([low, high]).all() and score[bf16] > score[quantized]):
        return NOT_RECOVERED
    normalized = float(degradation(score[name], score[bf16], score[quantized]))
    return {
        "normalized_degradation": normalized,
        "recovered": 1 + normalized,
        "recovered_ci95": [float(low), float(high)],
        "recovered_resolved": True,
    }


def difference(value: float, resampled: np.ndarray) -> dict:
    """Return a difference of two scores with its interval; `resampled` holds the resampled differences."""
    low, high = interval(resampled)
    return {
        "difference": value,
        "difference_ci95": [low, high],
        "resolved": low > 0 or high < 0,
    }


def compare(x: pd.DataFrame, reference: pd.DataFrame) -> dict:
    """Return what changed from a reference's answers to x's, question by question."""
    gained, lost = x["correct"] & ~reference["correct"], ~x["correct"] & reference["correct"]
    return {
        "mcnemar_p": mcnemar(gained.sum(), lost.sum()),
        "wrong_to_right": float(gained.mean()),
        "right_to_wrong": float(lost.mean()),
        "log_likelihood_change": stratified_mean(of_the_answer(x) - of_the_answer(reference)),
        "kl_divergence": stratified_mean(kl_divergence(reference, x)),
    }


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947): a fair coin over the questions that changed."""
    return float(scipy.stats.binomtest(int(gained), int(gained + lost)).pvalue) if gained + lost else 1.0


def holm(p_values: list[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false positive stays below the level (Holm 1979)."""
    p, order = np.array(p_values), np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def stratified_mean(values: pd.Series) -> dict:
    """Return the mean and normal interval over strata of fixed size: variance sum(n s²) / N² (Cochran 1977, 5.4)."""
    by_subject = values.groupby(level=0)
    mean, stderr = values.mean(), np.sqrt((by_subject.size() * by_subject.var()).sum()) / len(values)
    width = scipy.stats.norm.ppf(1 - TAIL) * stderr
    return {"mean": float(mean), "ci95": [float(mean - width), float(mean + width)]}


def log_likelihoods(answers: pd.DataFrame) -> np.ndarray:
    """Return the log-likelihoods of the choices, questions x choices; minus infinity for choices that are not there."""
    return answers.filter(like="log_likelihood_").fillna(-np.inf).to_numpy()


def of_the_answer(answers: pd.DataFrame) -> pd.Series:
    """Return the log-likelihood of the right choice, in nats."""
    return pd.Series(log_likelihoods(answers)[np.arange(len(answers)), answers["answer"]], answers.index)


def kl_divergence(reference: pd.DataFrame, x: pd.DataFrame) -> pd.Series:
    """Return KL(reference || x) of the distribution over the choices, in nats (Kullback & Leibler 1951)."""
    p, q = (scipy.special.log_softmax(log_likelihoods(answers), axis=1) for answers in (reference, x))
    there = np.isfinite(p)
    change = np.subtract(p, q, out=np.zeros_like(p), where=there)
    return pd.Series((np.exp(p) * change).sum(axis=1), reference.index)


def over_seeds(values: list[float], resampled: np.ndarray) -> dict:
    """Return the mean over training seeds with both sources of its variation; `resampled` is resamples x seeds."""
    return {
        "mean": float(np.mean(values)),
        "ci95": interval(resample_seeds(values, resampled)),
        "sd_between_seeds": float(np.std(values, ddof=1)),
        "stderr_within_units": float(np.std(resampled.mean(axis=1), ddof=1)),
    }


def resample_seeds(values: list[float], resampled: np.ndarray) -> np.ndarray:
    """Return resampled means over seeds that vary with the questions and, by Student's t for a few, with the seeds.

    That is the sum of Behrens & Fisher (Fisher 1935). The interaction of seeds and questions counts in both sources, so
    an interval is too wide rather than too narrow.
    """
    resamples, seeds = resampled.shape
    between = np.std(values, ddof=1) / np.sqrt(seeds)
    return resampled.mean(axis=1) + between * np.random.default_rng(SEED).standard_t(seeds - 1, resamples)
