"""What follows from the files of the variants: the rows of the summary, and what the variants settle.

normalized degradation of x = -(base-bf16 - x) / (base-bf16 - q), where q is the base rounded to nearest in x's scheme;
recovered = 1 + that, of each metric. That of the headline stands in the row itself. Intervals are of 95%.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from int4_qat.config import variants
from int4_qat.results import measurements, metrics, statistics
from int4_qat.results.measurements import DIVERGENCE, MMLU, Measurement
from int4_qat.results.metrics import Metric, Scores
from int4_qat.system.errors import InputError

OWN_SETTINGS = ("int4_path",)  # among the settings of a result: what a variant has by its nature
ROUNDING = {"rel_tol": 1e-6, "abs_tol": 1e-9}  # of a figure that is added up in another order
Measured = Mapping[str, list[Measurement]]  # of each variant
Found = Mapping[str, Mapping[str, dict]]  # what stands in the files, by variant and name of the measurement


class Asked(NamedTuple):
    """A measurement whose units are kept, and one of the metrics that they give."""

    measurement: Measurement
    tables: dict[str, pd.DataFrame]  # of the units, by variant
    metric: Metric
    scores: Scores


def derive(results: Path, measured: Measured, arms: dict[str, dict], references: dict[str, str], headline: str) -> dict:
    """Return what follows from the files of the variants, and from nothing else.

    references are the quantized bases that the variants are measured against; headline is the metric of which the rows
    tell first.
    """
    found = {name: {one.name: measurements.read(results / name, one) for one in measured[name]} for name in measured}
    check_comparable(results, measured, found)
    asked = {each.metric.name: each for each in read_units(results, measured, found)}
    if headline not in asked:
        raise InputError(f"evaluation.headline: expected one of {', '.join(asked)}, found '{headline}'")
    rows = [
        {"name": name, "quantized_baseline": references[name], "source": sources(name, measured[name])}
        | parts(name, measured[name], found, asked, references[name])
        | of_headline(name, references[name], asked[headline], found[variants.BASELINE])
        for name in measured
    ]
    pairs_of_run = pairs(list(measured), arms, references)
    compared = {name: comparisons(each, pairs_of_run) for name, each in asked.items()}
    return {
        "headline": describe(asked[headline].metric),
        "variants": rows,
        "comparisons": [pair for name in sorted(compared, key=headline.__ne__) for pair in compared[name]],
        "seeds": seeds(asked[headline], references, compared[headline], arms),
    }


def read_units(results: Path, measured: Measured, found: Found) -> Iterator[Asked]:
    """Yield what the tables of units give, metric by metric.

    Raise InputError if two variants were asked other units, or if a table gives another figure than the file beside it.
    """
    for one in {one.name: one for name in measured for one in measured[name] if one.samples}.values():
        names = [name for name in measured if one in measured[name]]
        tables = {name: measurements.read_samples(results / name, one) for name in names}
        check_same_units(one, tables)
        of_one = one.samples.metrics(one.name, tables, found[names[0]][one.name])
        every = [Asked(one, tables, metric, metrics.scores(metric)) for metric in of_one]
        for name in names if every else ():
            check_reported(results / name, one, name, every, found[name][one.name])
        yield from every


def check_same_units(measurement: Measurement, tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise InputError if the variants were not asked the same."""
    first = next(iter(tables))
    for name, table in tables.items():
        if not table.index.equals(tables[first].index):
            raise InputError(f"{name}: asked other questions of {measurement.name} than {first}")


def check_reported(folder: Path, measurement: Measurement, name: str, every: list[Asked], content: dict) -> None:
    """Raise InputError if a file says another figure than its table gives."""
    for each, figure in zip(every, measurement.samples.reported(content), strict=True):
        given = metrics.value_of(each.metric, each.scores.plain[name])
        if not math.isclose(given, figure, **ROUNDING):
            said = f"{measurement.file} says {figure}"
            raise InputError(f"{folder / measurement.samples.file}: gives {each.metric.name} {given}, {said}")


def check_comparable(results: Path, measured: Measured, found: Found) -> None:
    """Raise InputError if a variant was measured elsewhere or otherwise than the one that it is compared with."""
    for name in measured:
        for one in measured[name]:
            ours, theirs = found[name][one.name], found[variants.BASELINE].get(one.name)
            for key in one.conditions if theirs else ():
                condition, expected = conditions(ours[key]), conditions(theirs[key])
                if condition != expected:
                    other = f"that of {variants.BASELINE} is {expected}; measure both in one place"
                    raise InputError(f"{results / name / one.file}: {key} is {condition}, {other}")


def conditions(value: object) -> object:
    """Return a condition without what a variant has by its nature."""
    return {key: value[key] for key in value if key not in OWN_SETTINGS} if isinstance(value, dict) else value


def describe(metric: Metric) -> dict:
    """Return what a reader must know of a metric."""
    scale = metric.scale
    units = {"unit": scale.unit, "unit_of_differences": scale.unit_of_scores}
    return {"metric": metric.name, "higher_is_better": scale.higher_is_better} | units


def sources(name: str, measured: list[Measurement]) -> dict[str, str]:
    """Return the files that a row of the summary comes from."""
    tables = {f"{one.name}_samples": f"{name}/{one.samples.file}" for one in measured if one.samples}
    return {one.name: f"{name}/{one.file}" for one in measured} | tables


def parts(name: str, measured: list[Measurement], found: Found, asked: Mapping[str, Asked], reference: str) -> dict:
    """Return what a row of the summary shows of each measurement, None of those that the variant has not."""
    baseline = found[variants.BASELINE]
    shown = {one.name: None for one in measurements.table((), {}) if one.kept or one.samples}
    shown |= {"questions": {}, "tasks": {}}
    for one in measured:
        of_one = figures(one, found[name][one.name], baseline.get(one.name)) | quality(one, name, asked, reference)
        (shown[one.group] if one.group else shown)[one.name] = of_one
    return shown


def figures(measurement: Measurement, content: dict, baseline: dict | None) -> dict:
    """Return what the summary shows of a measurement: what it repeats, and what follows from the baseline's too."""
    kept = {key: content[key] for key in measurement.kept}
    return kept | (measurement.derived(content, baseline) if measurement.derived else {})


def quality(measurement: Measurement, name: str, asked: Mapping[str, Asked], reference: str) -> dict:
    """Return intervals and recovery of the metrics of a measurement."""
    every = [each for each in asked.values() if each.measurement is measurement]
    if measurement is DIVERGENCE:
        return of_texts(every, name, reference)
    if not every:
        return {measurement.samples.interval: None} | statistics.NOT_RECOVERED if measurement.samples else {}
    (each,) = every
    return {measurement.samples.interval: interval(each, name)} | metrics.recovery(
        each.metric, each.scores, name, reference
    )


def interval(asked: Asked, name: str) -> list[float] | None:
    """Return the interval of a variant's value: of answers, Wilson's, which has a width at 0% and 100% too."""
    if asked.measurement.samples.of_choices:
        correct = asked.tables[name]["correct"]
        return statistics.wilson(correct.sum(), len(correct))
    return metrics.interval_of(asked.metric, asked.scores.resampled[name])


def of_texts(every: list[Asked], name: str, reference: str) -> dict[str, dict]:
    """Return the divergence by text: each metric with its interval, and what was recovered of each."""
    shown: dict[str, dict] = {}
    for each in every:
        text, metric = each.metric.of_text
        part = shown.setdefault(text, {"recovered": {}})
        part[metric] = with_interval(each.metric, each.scores, name)
        recovery = metrics.recovery(each.metric, each.scores, name, reference)
        part["recovered"][metric] = {
            "value": recovery["recovered"],
            "ci95": recovery["recovered_ci95"],
            "resolved": recovery["recovered_resolved"],
        }
        if metric == "perplexity":
            part["perplexity_ratio"] = perplexity_ratio(each, name)
        if metric == "kl":
            part["kl_from_own_bf16"] = kl_from_own_bf16(each, text, name)
    return shown


def with_interval(metric: Metric, scores: Scores, name: str) -> dict:
    """Return a variant's value and its interval."""
    return {
        "value": metrics.value_of(metric, scores.plain[name]),
        "ci95": metrics.interval_of(metric, scores.resampled[name]),
    }


def perplexity_ratio(asked: Asked, name: str) -> dict:
    """Return how many times base-bf16's perplexity a variant has; scores are logarithms."""
    plain, resampled, base = *asked.scores, variants.BASELINE
    return {
        "value": math.exp(plain[base] - plain[name]),
        "ci95": metrics.interval_of(asked.metric, resampled[name] - resampled[base]),
    }


def kl_from_own_bf16(asked: Asked, text: str, name: str) -> dict | None:
    """Return a quantized variant's divergence from its own weights in bf16."""
    if not variants.is_quantized(name):
        return None
    table = asked.tables[name].loc[[text]]
    own = metrics.make("", metrics.DIVERGENCE, -table[["kl_from_own_bf16"]], table["tokens"])
    return with_interval(own, metrics.scores(own), "kl_from_own_bf16")


def of_headline(name: str, reference: str, asked: Asked, baseline: Mapping[str, dict]) -> dict:
    """Return the headline of a variant and what it recovered of it, in all and by group of the questions."""
    found = metrics.recovery(asked.metric, asked.scores, name, reference)
    value = {"headline": None}
    if name in asked.scores.plain:
        plain = metrics.value_of(asked.metric, asked.scores.plain[name])
        value = {"headline": {"value": plain, "ci95": interval(asked, name)}}
    return value | found | {"by_category": by_category(name, reference, asked, baseline)}


def by_category(name: str, reference: str, asked: Asked, baseline: Mapping[str, dict]) -> dict[str, dict]:
    """Return accuracy and recovery by category of MMLU's subjects, or by group of one's own questions."""
    if not asked.measurement.samples.of_choices:
        return {}
    groups = defaultdict(list)
    for subject in asked.metric.sums.index:
        of_mmlu = baseline[MMLU.name]["by_subject"] if asked.measurement is MMLU else {}
        groups[of_mmlu[subject]["category"] if of_mmlu else subject].append(subject)
    return {group: in_group(name, reference, asked, strata) for group, strata in sorted(groups.items())}


def in_group(name: str, reference: str, asked: Asked, strata: list[str]) -> dict:
    """Return accuracy and recovery over some strata."""
    scores, questions = metrics.scores(asked.metric, strata), asked.metric.sums.loc[strata, metrics.WEIGHT].sum()
    recovered = metrics.recovery(asked.metric, scores, name, reference)
    return {"accuracy": scores.plain[name], "questions": int(questions)} | recovered


def pairs(names: list[str], arms: dict[str, dict], references: dict[str, str]) -> list[tuple[str, str]]:
    """Return what each quantized variant is compared with.

    That is its reference and the base in bf16, its own bf16, and, with QAT, arms without it in the same quantization.
    """
    found = []
    for name in filter(variants.is_quantized, names):
        weights, precision = variants.split(name)
        own = [references[name], variants.BASELINE, f"{weights}-{variants.BF16}"]
        plain = [f"{arm}-{precision}" for arm in arms if is_counterpart(arm, weights, arms)]
        found += [(name, other) for other in dict.fromkeys([*own, *plain]) if other in names and other != name]
    return found


def is_counterpart(arm: str, weights: str, arms: dict[str, dict]) -> bool:
    """Return whether one arm is trained without QAT, another with it, and both from the same seed."""
    if weights not in arms or arms[arm]["quantization"] or not arms[weights]["quantization"]:
        return False
    return arms[arm]["seed"] == arms[weights]["seed"]


def comparisons(asked: Asked, compared: list[tuple[str, str]]) -> list[dict]:
    """Return one entry a pair that was measured by a metric; differences are of scores, so that more is better."""
    plain, resampled = asked.scores
    if not asked.metric.varies:
        return []
    found = [
        {"metric": asked.metric.name, "variant": name, "reference": reference}
        | statistics.difference(plain[name] - plain[reference], (resampled[name] - resampled[reference]).to_numpy())
        for name, reference in compared
        if {name, reference} <= plain.keys()
    ]
    if not asked.measurement.samples.of_choices:
        return found
    found = [
        pair | statistics.compare(asked.tables[pair["variant"]], asked.tables[pair["reference"]]) for pair in found
    ]
    adjusted = statistics.holm([pair["mcnemar_p"] for pair in found])
    return [pair | {"mcnemar_p_holm": p} for pair, p in zip(found, adjusted, strict=True)]


def seeds(asked: Asked, references: dict[str, str], compared: list[dict], arms: dict[str, dict]) -> dict:
    """Return the headline, its recovery and differences of pairs, over the arms that differ in their seed only."""
    groups, pairs_of_groups = defaultdict(list), defaultdict(list)
    for name in asked.scores.plain:
        groups[unseeded(name, arms)].append(name)
    for pair in compared:
        pairs_of_groups[unseeded(pair["variant"], arms), unseeded(pair["reference"], arms)].append(pair)
    several = [group for group in groups.values() if len(group) > 1 and asked.metric.varies]
    return {
        "accuracy": [seeds_of_variant(group, asked, references[group[0]]) for group in several],
        "difference": [seeds_of_pair(pairs, asked.scores) for pairs in pairs_of_groups.values() if len(pairs) > 1],
    }


def seeds_of_variant(names: list[str], asked: Asked, reference: str) -> dict:
    """Return the headline over seeds, and recovery of its mean; the seeds of one recipe share their reference."""
    plain, resampled = asked.scores
    values, of_seeds = [plain[name] for name in names], resampled[names].to_numpy()
    found = statistics.over_seeds(values, of_seeds)
    with_mean = resampled.assign(mean=statistics.resample_seeds(values, of_seeds))
    recovery = statistics.recovery("mean", plain | {"mean": found["mean"]}, with_mean, variants.BASELINE, reference)
    read = {
        "mean": metrics.value_of(asked.metric, found["mean"]),
        "ci95": sorted(metrics.value_of(asked.metric, score) for score in found["ci95"]),
    }
    return {"variants": names} | found | read | recovery


def seeds_of_pair(pairs: list[dict], scores: Scores) -> dict:
    """Return a difference over seeds."""
    names, references = ([pair[key] for pair in pairs] for key in ("variant", "reference"))
    differences = scores.resampled[names].to_numpy() - scores.resampled[references].to_numpy()
    found = statistics.over_seeds([pair["difference"] for pair in pairs], differences)
    return {"variants": names, "references": references} | found


def unseeded(variant: str, arms: dict[str, dict]) -> str:
    """Return what variants share whose recipes differ in the seed only."""
    weights, precision = variants.split(variant)
    recipe = arms.get(weights, {})
    return json.dumps([precision, {key: value for key, value in recipe.items() if key != "seed"}], sort_keys=True)
