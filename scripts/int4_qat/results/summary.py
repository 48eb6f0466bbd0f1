"""What follows from the files of the variants: the rows of the summary, and what the variants settle.

normalized degradation of x = -(base-bf16 - x) / (base-bf16 - q), where q is the base rounded to nearest in x's scheme;
recovered = 1 + that. Intervals are of 95%.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from int4_qat.config import variants
from int4_qat.data import mmlu, mmlu_parquet
from int4_qat.results import measurements, statistics
from int4_qat.results.measurements import MMLU, Measurement
from int4_qat.system.errors import InputError

KEY = ["subject", "index"]
ANSWERS = ["correct", "answer", *(f"log_likelihood_{letter}" for letter in mmlu.LETTERS)]
OWN_SETTINGS = ("int4_path",)  # among the settings of a result: what a variant has by its nature
Measured = Mapping[str, list[Measurement]]  # of each variant
Found = Mapping[str, Mapping[str, dict]]  # what stands in the files, by variant and name of the measurement


def derive(results: Path, measured: Measured, arms: dict[str, dict], references: dict[str, str]) -> dict:
    """Return what follows from the files of the variants, and from nothing else.

    references are the quantized bases that the variants are measured against.
    """
    found = {name: {one.name: measurements.read(results / name, one) for one in measured[name]} for name in measured}
    check_comparable(results, measured, found)
    answers = {name: read_answers(results / name) for name in measured}
    correct = correct_by_question(answers)
    right = statistics.resample(correct)
    resampled = statistics.pool(right, correct)
    recovered = recoveries(found[variants.BASELINE][MMLU.name]["by_subject"], correct, right, references)
    rows = [
        {"name": name, "quantized_baseline": references[name], "source": sources(name, measured[name])}
        | parts(measured[name], found[name], found[variants.BASELINE])
        | recovered[name]
        for name in measured
    ]
    for row in rows:
        row[MMLU.name]["accuracy_ci95"] = statistics.wilson(correct[row["name"]].sum(), len(correct))
    compared = comparisons(answers, pairs(list(measured), arms, references), resampled)
    return {
        "variants": rows,
        "comparisons": compared,
        "seeds": seeds(rows, compared, resampled, arms),
    }


def read_answers(folder: Path) -> pd.DataFrame:
    """Return a variant's answers, a row a question; raise InputError if they are not those of mmlu.json."""
    path, columns = folder / MMLU.samples, [*KEY, *ANSWERS]
    answers = mmlu_parquet.open_file(path, columns).read(columns).to_pandas().set_index(KEY)
    questions = measurements.read(folder, MMLU)["questions"]
    if len(answers) != questions:
        raise InputError(f"{path}: expected {questions} questions, found {len(answers)}")
    return answers


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


def correct_by_question(answers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return a column a variant, a row a question; raise InputError if they were not asked the same questions."""
    for name, table in answers.items():
        if not table.index.equals(answers[variants.BASELINE].index):
            raise InputError(f"{name}: asked other questions than {variants.BASELINE}")
    return pd.DataFrame({name: table["correct"] for name, table in answers.items()})


def recoveries(by_subject: dict, correct: pd.DataFrame, right: dict, references: dict[str, str]) -> dict[str, dict]:
    """Return what each variant recovered, in all and by category of subjects."""
    category = correct.index.get_level_values("subject").map(lambda subject: by_subject[subject]["category"])
    groups = {None: correct} | dict(iter(correct.groupby(category)))
    accuracies = {group: table.mean() for group, table in groups.items()}
    resampled = {group: statistics.pool(right, table) for group, table in groups.items()}

    def recovery(name: str, group: str | None) -> dict:
        ends = (variants.BASELINE, references[name])
        return statistics.recovery(name, accuracies[group], resampled[group], *ends)

    def in_category(name: str, group: str) -> dict:
        scores = {"accuracy": float(accuracies[group][name]), "questions": len(groups[group])}
        return scores | recovery(name, group)

    return {
        name: recovery(name, None)
        | {"by_category": {group: in_category(name, group) for group in groups if group is not None}}
        for name in correct
    }


def sources(name: str, measured: list[Measurement]) -> dict[str, str]:
    """Return the files that a row of the summary comes from."""
    tables = {f"{one.name}_samples": f"{name}/{one.samples}" for one in measured if one.samples}
    return {one.name: f"{name}/{one.file}" for one in measured} | tables


def parts(measured: list[Measurement], found: Mapping[str, dict], baseline: Mapping[str, dict]) -> dict:
    """Return what a row of the summary shows of each measurement, None of those that the variant has not."""
    shown = {one.name: figures(one, found[one.name], baseline.get(one.name)) for one in measured}
    tasks = {one.name: shown.pop(one.name) for one in measured if one.metric}
    return {one.name: None for one in measurements.OTHERS if one.kept} | shown | {"tasks": tasks}


def figures(measurement: Measurement, content: dict, baseline: dict | None) -> dict:
    """Return what the summary shows of a measurement: what it repeats, and what follows from the baseline's too."""
    kept = {key: content[key] for key in measurement.kept}
    return kept | (measurement.derived(content, baseline) if measurement.derived else {})


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


def comparisons(
    answers: Mapping[str, pd.DataFrame], compared: list[tuple[str, str]], resampled: pd.DataFrame
) -> list[dict]:
    """Return one entry a pair."""
    found = [
        {"variant": name, "reference": reference}
        | statistics.compare(answers[name], answers[reference], (resampled[name] - resampled[reference]).to_numpy())
        for name, reference in compared
    ]
    adjusted = statistics.holm([pair["mcnemar_p"] for pair in found])
    return [pair | {"mcnemar_p_holm": p} for pair, p in zip(found, adjusted, strict=True)]


def seeds(rows: list[dict], compared: list[dict], resampled: pd.DataFrame, arms: dict[str, dict]) -> dict:
    """Return accuracies, recovery and differences of pairs, over the arms that differ in their seed only."""
    by_name = {row["name"]: row for row in rows}
    groups, pairs_of_groups = defaultdict(list), defaultdict(list)
    for name in by_name:
        groups[unseeded(name, arms)].append(by_name[name])
    for pair in compared:
        pairs_of_groups[unseeded(pair["variant"], arms), unseeded(pair["reference"], arms)].append(pair)
    accuracies = {name: row[MMLU.name]["accuracy"] for name, row in by_name.items()}
    return {
        "accuracy": [seeds_of_variant(group, accuracies, resampled) for group in groups.values() if len(group) > 1],
        "difference": [seeds_of_pair(pairs, resampled) for pairs in pairs_of_groups.values() if len(pairs) > 1],
    }


def seeds_of_variant(rows: list[dict], accuracies: dict[str, float], resampled: pd.DataFrame) -> dict:
    """Return accuracy over seeds, and recovery of its mean; the seeds of one recipe share their reference."""
    names, reference = [row["name"] for row in rows], rows[0]["quantized_baseline"]
    values, of_seeds = [accuracies[name] for name in names], resampled[names].to_numpy()
    found = statistics.over_seeds(values, of_seeds)
    with_mean = resampled.assign(mean=statistics.resample_seeds(values, of_seeds))
    means = accuracies | {"mean": found["mean"]}
    recovery = statistics.recovery("mean", means, with_mean, variants.BASELINE, reference)
    return {"variants": names} | found | recovery


def seeds_of_pair(pairs: list[dict], resampled: pd.DataFrame) -> dict:
    """Return a difference over seeds."""
    names, references = ([pair[key] for pair in pairs] for key in ("variant", "reference"))
    differences = resampled[names].to_numpy() - resampled[references].to_numpy()
    found = statistics.over_seeds([pair["difference"] for pair in pairs], differences)
    return {"variants": names, "references": references} | found


def unseeded(variant: str, arms: dict[str, dict]) -> str:
    """Return what variants share whose recipes differ in the seed only."""
    weights, precision = variants.split(variant)
    recipe = arms.get(weights, {})
    return json.dumps([precision, {key: value for key, value in recipe.items() if key != "seed"}], sort_keys=True)
