"""Summarize the variants over training seeds, that is, over arms that differ only in their seed."""

import json
from collections import defaultdict

from int4_qat.config import variants
from int4_qat.results import metrics, statistics
from int4_qat.results.metrics import Scores
from int4_qat.results.units import Asked


def over_seeds(asked: Asked, references: dict[str, str], compared: list[dict], arms: dict[str, dict]) -> dict:
    """Return the headline, its recovery and the differences of pairs, over the arms that differ only in their seed."""
    groups, pairs_of_groups = defaultdict(list), defaultdict(list)
    for name in asked.scores.plain:
        groups[unseeded(name, arms)].append(name)
    for pair in compared:
        pairs_of_groups[unseeded(pair["variant"], arms), unseeded(pair["reference"], arms)].append(pair)
    several = [group for group in groups.values() if len(group) > 1 and asked.metric.varies]
    return {
        "headline": [seeds_of_variant(group, asked, references[group[0]]) for group in several],
        "difference": [seeds_of_pair(pairs, asked.scores) for pairs in pairs_of_groups.values() if len(pairs) > 1],
    }


def seeds_of_variant(names: list[str], asked: Asked, reference: str) -> dict:
    """Return the headline over seeds and the recovery of its mean; the seeds of one recipe share their reference."""
    plain, resampled = asked.scores
    values, of_seeds = [plain[name] for name in names], resampled[names].to_numpy()
    found = statistics.over_seeds(values, of_seeds)
    with_mean = resampled.assign(mean=statistics.resample_seeds(values, of_seeds))
    of_mean = Scores(plain | {"mean": found["mean"]}, with_mean)
    recovery = metrics.recovery(asked.metric, of_mean, "mean", reference, asked.calibrated)
    read = {
        "mean": metrics.value_of(asked.metric, found["mean"]),
        "ci95": sorted(metrics.value_of(asked.metric, score) for score in found["ci95"]),
    }
    return {"variants": names} | found | read | recovery


def seeds_of_pair(pairs: list[dict], scores: Scores) -> dict:
    """Return the difference of a pair over seeds."""
    names, references = ([pair[key] for pair in pairs] for key in ("variant", "reference"))
    differences = scores.resampled[names].to_numpy() - scores.resampled[references].to_numpy()
    found = statistics.over_seeds([pair["difference"] for pair in pairs], differences)
    return {"variants": names, "references": references} | found


def unseeded(variant: str, arms: dict[str, dict]) -> str:
    """Return a key that is equal for variants whose recipes differ only in their seed."""
    weights, precision = variants.split(variant)
    recipe = arms.get(weights, {})
    return json.dumps([precision, {key: value for key, value in recipe.items() if key != "seed"}], sort_keys=True)
