"""Derive the summary from the files of the variants: its rows, and what the variants settle.

normalized degradation of x = -(base-bf16 - x) / (base-bf16 - q), where q is the base rounded to nearest in x's scheme,
and recovered = 1 + that. Each metric has a recovered; the headline's is in the row itself. recovered_of_calibrated has
the calibrated base that is best by the metric in q's place, whatever its scheme. Intervals have 95% confidence.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from int4_qat.config import variants
from int4_qat.results import measured_files, measurements, metrics, seeds, statistics, units, verdict
from int4_qat.results.measurements import DIVERGENCE, MMLU, Measurement
from int4_qat.results.metrics import Metric, Scores
from int4_qat.results.units import Asked, Found, Measured
from int4_qat.system.errors import InputError

OWN_SETTINGS = ("int4_path",)  # settings of a result that depend on the variant itself


def derive(
    results: Path,
    measured: Measured,
    arms: dict[str, dict],
    references: dict[str, str],
    calibrated: dict[str, str],
    headline: str,
    not_served: dict[str, dict[str, str]],
) -> dict:
    """Return what follows from the files of the variants alone.

    references gives the quantized base that each variant is measured against, calibrated the method of each calibrated
    base, headline the metric that the rows show first, and not_served why a variant's measurement is missing.
    """
    found = {name: {one.name: measured_files.read(results / name, one) for one in measured[name]} for name in measured}
    check_comparable(results, measured, found)
    asked = {each.metric.name: each for each in units.read(results, measured, found, calibrated)}
    if headline not in asked:
        raise InputError(f"evaluation.headline: expected one of {', '.join(asked)}, found '{headline}'")
    groups = score_groups(asked[headline], found[variants.BASELINE])
    rows = [
        {"name": name, "quantized_baseline": references[name], "source": sources(name, measured[name])}
        | {"not_served": not_served.get(name, {})}
        | parts(name, measured[name], found, asked, references[name])
        | of_headline(name, references[name], asked[headline], groups)
        for name in measured
    ]
    compared = {
        name: comparisons(each, pairs(list(measured), arms, references, each.calibrated))
        for name, each in asked.items()
    }
    return {
        "headline": metrics.describe(asked[headline].metric),
        "variants": rows,
        "training_against_calibration": verdict.verdicts(asked, compared, headline, calibrated),
        "comparisons": [pair for name in dict.fromkeys([headline, *compared]) for pair in compared[name]],
        "seeds": seeds.over_seeds(asked[headline], references, compared[headline], arms),
    }


def check_comparable(results: Path, measured: Measured, found: Found) -> None:
    """Raise InputError if a variant was measured under other conditions than base-bf16, with which it is compared."""
    for name in measured:
        for one in measured[name]:
            ours, theirs = found[name][one.name], found[variants.BASELINE].get(one.name)
            for key in one.conditions if theirs else ():
                condition, expected = conditions(ours[key]), conditions(theirs[key])
                if condition != expected:
                    wanted = f"expected {expected}, as for {variants.BASELINE}"
                    raise InputError(
                        f"{results / name / one.file}: {key}: {wanted}, found {condition}; measure both alike"
                    )


def conditions(value: object) -> object:
    """Return a condition without the settings that depend on the variant itself."""
    return {key: value[key] for key in value if key not in OWN_SETTINGS} if isinstance(value, dict) else value


def sources(name: str, measured: list[Measurement]) -> dict[str, str]:
    """Return the files that a row of the summary comes from."""
    tables = {f"{one.name}_samples": f"{name}/{one.samples.file}" for one in measured if one.samples}
    return {one.name: f"{name}/{one.file}" for one in measured} | tables


def parts(name: str, measured: list[Measurement], found: Found, asked: Mapping[str, Asked], reference: str) -> dict:
    """Return what a row of the summary shows of each measurement; None for those that the variant does not have."""
    baseline = found[variants.BASELINE]
    shown = {one.name: None for one in measurements.table((), {}) if one.kept or one.samples}
    shown |= {"questions": {}, "tasks": {}}
    for one in measured:
        of_one = figures(one, found[name][one.name], baseline.get(one.name)) | quality(one, name, asked, reference)
        (shown[one.group] if one.group else shown)[one.name] = of_one
    return shown


def figures(measurement: Measurement, content: dict, baseline: dict | None) -> dict:
    """Return the figures that the summary repeats from a measurement, and those derived with the baseline's."""
    kept = {key: content[key] for key in measurement.kept}
    return kept | (measurement.derived(content, baseline) if measurement.derived else {})


def quality(measurement: Measurement, name: str, asked: Mapping[str, Asked], reference: str) -> dict:
    """Return the intervals and recoveries of a measurement's metrics."""
    every = [each for each in asked.values() if each.measurement is measurement]
    if measurement is DIVERGENCE:
        return of_texts(every, name, reference)
    if not every:
        return {measurement.samples.interval: None} | metrics.NOT_RECOVERED if measurement.samples else {}
    (each,) = every
    return {measurement.samples.interval: units.interval(each, name)} | metrics.recovery(
        each.metric, each.scores, name, reference, each.calibrated
    )


def of_texts(every: list[Asked], name: str, reference: str) -> dict[str, dict]:
    """Return the divergence by text: each metric with its interval and its recovery."""
    shown: dict[str, dict] = {}
    for each in every:
        text, metric = each.metric.of_text
        part = shown.setdefault(text, {"recovered": {}})
        part[metric] = with_interval(each.metric, each.scores, name)
        part["recovered"][metric] = recovered_of_text(each, name, reference)
        if metric == "perplexity":
            part["perplexity_ratio"] = perplexity_ratio(each, name)
        if metric == "kl":
            part["kl_from_own_bf16"] = kl_from_own_bf16(each, text, name)
    return shown


def recovered_of_text(asked: Asked, name: str, reference: str) -> dict:
    """Return how much a variant recovered, and how much of what the best calibrated base lost."""
    recovery = metrics.recovery(asked.metric, asked.scores, name, reference, asked.calibrated)

    def part(key: str) -> dict:
        return {"value": recovery[key], "ci95": recovery[f"{key}_ci95"], "resolved": recovery[f"{key}_resolved"]}

    of_calibrated = {"baseline": recovery["calibrated_baseline"]} | part("recovered_of_calibrated")
    return part("recovered") | {"of_calibrated": of_calibrated}


def with_interval(metric: Metric, scores: Scores, name: str) -> dict:
    """Return a variant's value and its interval."""
    return {
        "value": metrics.value_of(metric, scores.plain[name]),
        "ci95": metrics.interval_of(metric, scores.resampled[name]),
    }


def perplexity_ratio(asked: Asked, name: str) -> dict:
    """Return the ratio of a variant's perplexity to base-bf16's; scores are negative logarithms of perplexities."""
    plain, resampled, base = *asked.scores, variants.BASELINE
    return {
        "value": math.exp(plain[base] - plain[name]),
        "ci95": metrics.interval_of(asked.metric, resampled[name] - resampled[base]),
    }


def kl_from_own_bf16(asked: Asked, text: str, name: str) -> dict | None:
    """Return a quantized variant's divergence from its own weights in bf16; None for a variant in bf16."""
    if not variants.is_quantized(name):
        return None
    table = asked.tables[name].loc[[text]]
    own = metrics.make("", metrics.DIVERGENCE, -table[["kl_from_own_bf16"]], table["tokens"])
    return with_interval(own, metrics.scores(own), "kl_from_own_bf16")


def score_groups(asked: Asked, baseline: Mapping[str, dict]) -> dict[str, tuple[Scores, int]]:
    """Return scores and number of questions by category of MMLU's subjects, or by group of the user's own questions."""
    if not asked.measurement.samples.of_choices:
        return {}
    categories = baseline[MMLU.name]["by_subject"] if asked.measurement is MMLU else {}
    strata = defaultdict(list)
    for subject in asked.metric.sums.index:
        strata[categories[subject]["category"] if categories else subject].append(subject)
    sizes = asked.metric.sums[metrics.WEIGHT]
    return {
        group: (metrics.scores(asked.metric, chosen), int(sizes[chosen].sum()))
        for group, chosen in sorted(strata.items())
    }


def of_headline(name: str, reference: str, asked: Asked, groups: Mapping[str, tuple[Scores, int]]) -> dict:
    """Return the headline of a variant and its recovery, overall and by group of questions."""
    value = None
    if name in asked.scores.plain:
        plain = metrics.value_of(asked.metric, asked.scores.plain[name])
        value = {"value": plain, "ci95": units.interval(asked, name)}
    by_category = {
        group: {"accuracy": scores.plain[name], "questions": questions}
        | metrics.recovery(asked.metric, scores, name, reference, asked.calibrated)
        for group, (scores, questions) in groups.items()
    }
    recovered = metrics.recovery(asked.metric, asked.scores, name, reference, asked.calibrated)
    return {"headline": value} | recovered | {"by_category": by_category}


def pairs(
    names: list[str], arms: dict[str, dict], references: dict[str, str], calibrated: str | None = None
) -> list[tuple[str, str]]:
    """Return pairs of a quantized variant and a variant that it is compared with.

    Each is compared with its reference, the base in bf16 and its own weights in bf16. One trained with QAT is also
    compared with arms without QAT in the same quantization, and every trained one with the best calibrated base, which
    needs no training.
    """
    found = []
    for name in filter(variants.is_quantized, names):
        weights, precision = variants.split(name)
        own = [references[name], variants.BASELINE, f"{weights}-{variants.BF16}"]
        plain = [f"{arm}-{precision}" for arm in arms if is_counterpart(arm, weights, arms)]
        untrained = [calibrated] if weights != variants.BASE else []
        others = dict.fromkeys([*own, *plain, *untrained])
        found += [(name, other) for other in others if other in names and other != name]
    return found


def is_counterpart(arm: str, weights: str, arms: dict[str, dict]) -> bool:
    """Return whether `arm` is trained without QAT and `weights` with it, both with the same seed."""
    if weights not in arms or arms[arm]["quantization"] or not arms[weights]["quantization"]:
        return False
    return arms[arm]["seed"] == arms[weights]["seed"]


def comparisons(asked: Asked, compared: list[tuple[str, str]]) -> list[dict]:
    """Return one entry per pair that was measured by a metric; differences are of scores, so more is better."""
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
