"""Put the results of all variants into one table, the columns of the card's three tables, and say what they settle.

normalized degradation of x = -(base-bf16 - x) / (base-bf16 - base-int4); recovered = 1 + that. Intervals are of 95%.

    python scripts/summarize.py --model demo --variants base-bf16 base-int4 qat-int4 \\
        --arms '{"qat": {"qat_scheme": "int4", "seed": 3407}}' --tasks arc_challenge=acc_norm,none \\
        --charted base-bf16 base-int4 qat-int4 --results results/demo --data-report resources/mmlu/report.json \\
        --contamination resources/contamination.json --costs results/demo/costs.json \\
        --json results/demo/summary.json --csv results/demo/summary.csv
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from int4_qat import errors, files, mmlu, mmlu_parquet, statistics, tables, variants
from int4_qat.errors import InputError

MMLU = ("accuracy", "stderr", "questions", "prompts_over_max_length", "subjects")
CHARTQA = ("relaxed_overall", "human", "augmented", "stderr", "questions", "dequantized")
KEY = ["subject", "index"]
# What must be the same for two variants to be compared, by the file in which it stands.
CONDITIONS = {
    "mmlu": ("settings", "versions"),
    "memory": ("device", "measure", "dtype", "generated_tokens"),
    "latency": ("device", "engine", "engine_version", "vllm_arguments", "dtype", "input_len", "output_len"),
}
OWN_SETTINGS = ("int4_path",)  # of mmlu.json's: what a variant has by its nature
ANSWERS = ["correct", "answer", *(f"log_likelihood_{letter}" for letter in mmlu.LETTERS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="key of the model in the config")
    parser.add_argument("--variants", required=True, nargs="+")
    parser.add_argument("--arms", required=True, type=json.loads, help="JSON: the recipe of each arm, by its name")
    parser.add_argument("--tasks", nargs="*", default=[], help="<task>=<metric>: which metric of which further task")
    parser.add_argument("--charted", nargs="*", default=[], help="the variants that lmms-eval asked about charts")
    parser.add_argument("--results", required=True, type=Path, help="folder with a folder for each variant")
    parser.add_argument("--data-report", required=True, type=Path, help="report.json of download_mmlu")
    parser.add_argument("--contamination", required=True, type=Path, help="JSON of check_contamination")
    parser.add_argument("--costs", required=True, type=Path, help="costs.json of report_costs")
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--csv", required=True, type=Path)
    arguments = parser.parse_args()
    summary = {
        "model": arguments.model,
        "data": files.read_json(arguments.data_report),
        "contamination": files.read_json(arguments.contamination),
        **derive(
            arguments.results,
            arguments.variants,
            arguments.arms,
            dict(task.split("=") for task in arguments.tasks),
            arguments.charted,
        ),
        "costs": files.read_json(arguments.costs),
        "source": {key: str(getattr(arguments, key)) for key in ("data_report", "contamination", "costs")},
    }
    with files.whole(arguments.csv) as unfinished:
        tables.flat(summary["variants"]).to_csv(unfinished, index=False)
    files.write_json(arguments.json, summary)
    for title, table in tables.printed(summary).items():
        print(f"{title}\n{table.to_string(index=False, float_format='{:.4f}'.format)}\n")


def derive(
    results: Path, names: list[str], arms: dict[str, dict], tasks: dict[str, str], charted: Collection[str]
) -> dict:
    """What follows from the files of the variants, and from nothing else."""
    measured = {name: read_variant(results / name, tasks, name in charted) for name in names}
    for name in names:
        check_comparable(results, name, measured)
    correct = correct_by_question(measured)
    right = statistics.resample(correct)
    resampled = statistics.pool(right, correct)
    rows = summarize(measured, correct, right)
    compared = comparisons(measured, pairs(names, arms), resampled)
    return {"variants": rows, "comparisons": compared, "seeds": seeds(rows, compared, resampled, arms)}


def read_variant(folder: Path, tasks: dict[str, str], charted: bool) -> dict:
    """A variant's results; InputError if one is missing or the samples are not those of the report."""
    results = {name: files.read_json(folder / f"{name}.json") for name in ("mmlu", "memory", "latency")}
    results["tasks"] = {task: read_task(folder / "tasks" / f"{task}.json", metric) for task, metric in tasks.items()}
    results["chartqa"] = files.read_json(folder / "chartqa.json") if charted else None
    path = folder / "mmlu_samples.parquet"
    columns = [*KEY, *ANSWERS]
    weights, precision = variants.split(folder.name)
    trained_and_quantized = precision == "int4" and weights != variants.BASE
    results["parity"] = files.read_json(folder / "parity.json") if trained_and_quantized else None
    results["answers"] = mmlu_parquet.open_file(path, columns).read(columns).to_pandas().set_index(KEY)
    if len(results["answers"]) != results["mmlu"]["questions"]:
        raise InputError(f"{path}: expected {results['mmlu']['questions']} questions, found {len(results['answers'])}")
    return results


def check_comparable(results: Path, name: str, measured: dict[str, dict]) -> None:
    """InputError if a variant was measured elsewhere or otherwise than the one that it is compared with."""
    for kind, keys in CONDITIONS.items():
        path, ours, theirs = results / name / f"{kind}.json", measured[name][kind], measured[variants.BASELINE][kind]
        for key in keys:
            found, expected = (conditions(each.get(key)) for each in (ours, theirs))
            if found != expected:
                raise InputError(
                    f"{path}: {key} is {found}, that of {variants.BASELINE} is {expected}; measure both in one place"
                )


def conditions(value: object) -> object:
    """A condition without what a variant has by its nature."""
    return {key: value[key] for key in value if key not in OWN_SETTINGS} if isinstance(value, dict) else value


def read_task(path: Path, metric: str) -> dict:
    """The metric of a task that counts; InputError if lm-eval reports none of that name."""
    metrics = files.read_json(path)["metrics"]
    if metric not in metrics:
        raise InputError(f"evaluation.tasks: {path} has no metric '{metric}'; expected {' or '.join(metrics)}")
    return {"metric": metric} | metrics[metric]


def correct_by_question(measured: dict[str, dict]) -> pd.DataFrame:
    """A column a variant, a row a question; InputError if the variants were not asked the same questions."""
    columns = {name: results["answers"]["correct"] for name, results in measured.items()}
    for name, column in columns.items():
        if not column.index.equals(columns[variants.BASELINE].index):
            raise InputError(f"{name}: asked other questions than {variants.BASELINE}")
    return pd.DataFrame(columns)


def summarize(measured: dict[str, dict], correct: pd.DataFrame, right: dict) -> list[dict]:
    """One entry a variant, in the order given."""
    baseline = measured[variants.BASELINE]
    by_subject = baseline["mmlu"]["by_subject"]
    category = correct.index.get_level_values("subject").map(lambda subject: by_subject[subject]["category"])
    groups = {None: correct} | dict(iter(correct.groupby(category)))
    accuracies = {group: table.mean() for group, table in groups.items()}
    resampled = {group: statistics.pool(right, table) for group, table in groups.items()}
    rows = []
    for name, results in measured.items():
        score, memory, latency = results["mmlu"], results["memory"], results["latency"]
        batches = [
            compare_latency(batch, plain)
            for batch, plain in zip(latency["batches"], baseline["latency"]["batches"], strict=True)
        ]
        recovery = {
            group: statistics.recovery(
                name, accuracies[group], resampled[group], variants.BASELINE, variants.QUANTIZED_BASELINE
            )
            for group in groups
        }
        rows.append(
            {
                "name": name,
                "source": {key: f"{name}/{key}.json" for key in ("mmlu", "memory", "latency")}
                | {"answers": f"{name}/mmlu_samples.parquet"}
                | {task: f"{name}/tasks/{task}.json" for task in results["tasks"]}
                | ({"chartqa": f"{name}/chartqa.json"} if results["chartqa"] else {})
                | ({"parity": f"{name}/parity.json"} if results["parity"] else {}),
                "mmlu": {key: score[key] for key in MMLU}
                | {"accuracy_ci95": statistics.wilson(correct[name].sum(), len(correct))},
                "tasks": results["tasks"],
                "chartqa": results["chartqa"] and {key: results["chartqa"][key] for key in CHARTQA},
                **recovery.pop(None),
                "by_category": {
                    group: {"accuracy": float(accuracies[group][name]), "questions": len(groups[group])} | recovered
                    for group, recovered in recovery.items()
                },
                "memory": {
                    **{
                        key: memory[key]
                        for key in ("peak_gb", "checkpoint_gb", "weights_gb", "predicted", "dequantized", "measure")
                    },
                    "reduction": 1 - memory["peak_gb"] / baseline["memory"]["peak_gb"],
                    "checkpoint_reduction": 1 - memory["checkpoint_gb"] / baseline["memory"]["checkpoint_gb"],
                },
                "latency": {
                    **{key: latency[key] for key in ("engine", "output_len", "dequantized")},
                    **batches[0],
                    "batches": batches,
                },
                "parity": results["parity"]
                and {key: results["parity"][key] for key in ("weights_that_differ", "relative_logit_difference")},
            }
        )
    return rows


def compare_latency(batch: dict, baseline: dict) -> dict:
    """Latency of one batch size, and the speedup; the spreads of both measurements add up to the speedup's."""
    speedup = baseline["mean_s"] / batch["mean_s"]
    spreads = [None if each["std_s"] is None else each["std_s"] / each["mean_s"] for each in (batch, baseline)]
    return {
        **{key: batch[key] for key in ("batch_size", "mean_s", "std_s", "percentiles_s", "bandwidth_limit_percent")},
        "speedup": speedup,
        "speedup_std": None if None in spreads else speedup * math.hypot(*spreads),
    }


def pairs(names: list[str], arms: dict[str, dict]) -> list[tuple[str, str]]:
    """What an int4 variant is compared with: the int4 and bf16 base, its own bf16, and, with QAT, arms without it."""
    found = []
    for name in names:
        weights, precision = variants.split(name)
        if precision == "int4":
            own = [variants.QUANTIZED_BASELINE, variants.BASELINE, f"{weights}-bf16"]
            plain = [f"{arm}-int4" for arm in arms if is_counterpart(arm, weights, arms)]
            found += [(name, other) for other in dict.fromkeys([*own, *plain]) if other in names and other != name]
    return found


def is_counterpart(arm: str, weights: str, arms: dict[str, dict]) -> bool:
    """Whether one arm is trained without QAT, another with it, and both from the same seed."""
    if weights not in arms or arms[arm]["qat_scheme"] or not arms[weights]["qat_scheme"]:
        return False
    return arms[arm]["seed"] == arms[weights]["seed"]


def comparisons(measured: dict[str, dict], compared: list[tuple[str, str]], resampled: pd.DataFrame) -> list[dict]:
    """One entry a pair."""
    answers = {name: results["answers"] for name, results in measured.items()}
    found = [
        {"variant": name, "reference": reference}
        | statistics.compare(answers[name], answers[reference], (resampled[name] - resampled[reference]).to_numpy())
        for name, reference in compared
    ]
    adjusted = statistics.holm([pair["mcnemar_p"] for pair in found])
    return [pair | {"mcnemar_p_holm": p} for pair, p in zip(found, adjusted, strict=True)]


def seeds(rows: list[dict], compared: list[dict], resampled: pd.DataFrame, arms: dict[str, dict]) -> dict:
    """Accuracies, recovery and differences of pairs, over the arms that differ in their seed only."""
    accuracies = {row["name"]: row["mmlu"]["accuracy"] for row in rows}
    groups, pairs_of_groups = defaultdict(list), defaultdict(list)
    for name in accuracies:
        groups[unseeded(name, arms)].append(name)
    for pair in compared:
        pairs_of_groups[unseeded(pair["variant"], arms), unseeded(pair["reference"], arms)].append(pair)
    return {
        "accuracy": [seeds_of_variant(names, accuracies, resampled) for names in groups.values() if len(names) > 1],
        "difference": [seeds_of_pair(pairs, resampled) for pairs in pairs_of_groups.values() if len(pairs) > 1],
    }


def seeds_of_variant(names: list[str], accuracies: dict[str, float], resampled: pd.DataFrame) -> dict:
    """Accuracy over seeds, and recovery of its mean."""
    values, of_seeds = [accuracies[name] for name in names], resampled[names].to_numpy()
    found = statistics.over_seeds(values, of_seeds)
    with_mean = resampled.assign(mean=statistics.resample_seeds(values, of_seeds))
    recovery = statistics.recovery(
        "mean", accuracies | {"mean": found["mean"]}, with_mean, variants.BASELINE, variants.QUANTIZED_BASELINE
    )
    return {"variants": names} | found | recovery


def seeds_of_pair(pairs: list[dict], resampled: pd.DataFrame) -> dict:
    """Difference over seeds."""
    names, references = ([pair[key] for pair in pairs] for key in ("variant", "reference"))
    differences = resampled[names].to_numpy() - resampled[references].to_numpy()
    found = statistics.over_seeds([pair["difference"] for pair in pairs], differences)
    return {"variants": names, "references": references} | found


def unseeded(variant: str, arms: dict[str, dict]) -> str:
    """What variants share whose recipes differ in the seed only."""
    weights, precision = variants.split(variant)
    recipe = arms.get(weights, {})
    return json.dumps([precision, {key: value for key, value in recipe.items() if key != "seed"}], sort_keys=True)


if __name__ == "__main__":
    errors.run(main)
