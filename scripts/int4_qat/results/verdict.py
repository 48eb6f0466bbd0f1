"""Decide whether training beat the best int4 that needs no training: a base that a method calibrated on texts.

The best of several such bases is chosen on the same units on which it is compared, which favours it, not training.
"""

from collections.abc import Mapping

from int4_qat.config import variants
from int4_qat.results import metrics
from int4_qat.results.units import Asked

QUESTION = "did training beat the best calibrated base? (above 0 it did)"
SAID = {True: "yes", False: "no", None: "not resolved"}  # for the values of training_won


def verdicts(
    asked: Mapping[str, Asked], compared: Mapping[str, list[dict]], headline: str, methods: dict
) -> list[dict]:
    """Return one entry per trained variant for the headline, and one for the KL on the first text.

    asked and compared are keyed by metric, methods by calibrated base.
    """
    kls = [name for name, each in asked.items() if each.metric.of_text and each.metric.of_text[1] == "kl"]
    return [
        metrics.describe(asked[name].metric)
        | {"variant": pair["variant"], "calibrated_baseline": pair["reference"], "method": methods[pair["reference"]]}
        | {key: pair[key] for key in ("difference", "difference_ci95")}
        | {"training_won": pair["difference"] > 0 if pair["resolved"] else None}
        for name in dict.fromkeys([headline, *kls[:1]])
        for pair in compared[name]
        if pair["reference"] == asked[name].calibrated
    ]


def of_variant(variant: str, found: list[dict]) -> list[dict]:
    """Return the verdicts on a variant, or those on every trained variant if it was not trained itself."""
    is_trained = variants.split(variant)[0] != variants.BASE
    return [verdict for verdict in found if verdict["variant"] == variant or not is_trained]


def sentence(verdict: dict) -> str:
    """Return a verdict as 'mmlu: yes, qat-int4 against base-gptq (gptq) +0.42 [+0.10, +0.74] points'."""
    against = f"{verdict['variant']} against {verdict['calibrated_baseline']} ({verdict['method']})"
    return f"{verdict['metric']}: {SAID[verdict['training_won']]}, {against} {difference(verdict)}"


def difference(verdict: dict) -> str:
    """Return the paired difference of a verdict with its interval and unit, as text."""
    is_share = verdict["unit"] == metrics.SHARE.unit
    scale, form, unit = (100, "+.2f", "points") if is_share else (1, "+.4f", verdict["unit_of_differences"])
    value, low, high = (f"{scale * end:{form}}" for end in (verdict["difference"], *verdict["difference_ci95"]))
    return f"{value} [{low}, {high}] {unit}".rstrip()
