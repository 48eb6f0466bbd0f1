"""Put the results of all variants into one table, with the columns of the card's three tables.

normalized degradation of x = -(base-bf16 - x) / (base-bf16 - base-int4); recovered = 1 + that.

    python scripts/summarize.py --model demo --variants base-bf16 base-int4 qat-int4 --results results/demo \\
        --data-report resources/mmlu/report.json --costs results/demo/costs.json \\
        --json results/demo/summary.json --csv results/demo/summary.csv
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from int4_qat import errors, files, mmlu_parquet, variants
from int4_qat.errors import InputError

RESAMPLES, CONFIDENCE, SEED = 10_000, 0.95, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="key of the model in the config")
    parser.add_argument("--variants", required=True, nargs="+")
    parser.add_argument("--results", required=True, type=Path, help="folder with a folder for each variant")
    parser.add_argument("--data-report", required=True, type=Path, help="report.json of download_mmlu")
    parser.add_argument("--costs", required=True, type=Path, help="costs.json of report_costs")
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--csv", required=True, type=Path)
    arguments = parser.parse_args()
    measured = {name: read_variant(arguments.results / name) for name in arguments.variants}
    data = files.read_json(arguments.data_report)
    rows = summarize(measured)
    table = flat_table(rows)
    with files.whole(arguments.csv) as unfinished:
        table.to_csv(unfinished, index=False)
    costs = files.read_json(arguments.costs)
    files.write_json(arguments.json, {"model": arguments.model, "data": data, "variants": rows, "costs": costs})
    print(table.to_string(index=False, float_format="{:.4f}".format))


def read_variant(folder: Path) -> dict:
    """A variant's results; InputError if one is missing or the samples are not those of the report."""
    results = {name: files.read_json(folder / f"{name}.json") for name in ("mmlu", "memory", "latency")}
    path = folder / "mmlu_samples.parquet"
    results["samples"] = mmlu_parquet.open_file(path, ["subject", "index", "correct"]).read().to_pandas()
    if len(results["samples"]) != results["mmlu"]["questions"]:
        raise InputError(f"{path}: expected {results['mmlu']['questions']} questions, found {len(results['samples'])}")
    return results


def summarize(measured: dict[str, dict]) -> list[dict]:
    """One entry a variant, in the order given."""
    correct = correct_by_question(measured)
    bf16, int4 = variants.BASELINE, variants.QUANTIZED_BASELINE
    resampled = resample(correct)
    rows = []
    for name, results in measured.items():
        score, memory, latency = results["mmlu"], results["memory"], results["latency"]
        normalized = degradation(correct[name].mean(), correct[bf16].mean(), correct[int4].mean())
        recovered = 1 + degradation(resampled[name], resampled[bf16], resampled[int4])
        tail = (1 - CONFIDENCE) / 2
        interval = np.quantile(recovered, [tail, 1 - tail]).tolist() if np.isfinite(recovered).all() else None
        baseline = measured[bf16]
        rows.append(
            {
                "name": name,
                "mmlu": {key: score[key] for key in ("accuracy", "stderr", "questions", "subjects")},
                "normalized_degradation": finite(normalized),
                "recovered": finite(1 + normalized),
                "recovered_ci95": interval,
                "memory": {
                    **{
                        key: memory[key] for key in ("peak_gb", "checkpoint_gb", "weights_gb", "dequantized", "measure")
                    },
                    "reduction": 1 - memory["peak_gb"] / baseline["memory"]["peak_gb"],
                    "checkpoint_reduction": 1 - memory["checkpoint_gb"] / baseline["memory"]["checkpoint_gb"],
                },
                "latency": {
                    **{key: latency[key] for key in ("mean_s", "engine", "batch_size", "dequantized")},
                    "speedup": baseline["latency"]["mean_s"] / latency["mean_s"],
                },
            }
        )
    return rows


def correct_by_question(measured: dict[str, dict]) -> pd.DataFrame:
    """A column a variant, a row a question; InputError if the variants were not asked the same questions."""
    columns = {}
    for name, results in measured.items():
        columns[name] = results["samples"].set_index(["subject", "index"])["correct"].astype(float)
        if not columns[name].index.equals(columns[variants.BASELINE].index):
            raise InputError(f"{name}: asked other questions than {variants.BASELINE}")
    return pd.DataFrame(columns)


def resample(correct: pd.DataFrame) -> dict[str, np.ndarray]:
    """Accuracies of each variant over bootstrap resamples of the questions, the same for all variants."""
    generator = np.random.default_rng(SEED)
    patterns, counts = np.unique(correct.to_numpy(), axis=0, return_counts=True)
    draws = generator.multinomial(len(correct), counts / len(correct), size=RESAMPLES)
    accuracies = draws @ patterns / len(correct)
    return dict(zip(correct.columns, accuracies.T, strict=True))


def degradation(score, bf16, int4):
    """The card's normalized degradation; infinite or NaN where int4 cost nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.divide(bf16 - score, bf16 - int4)


def finite(value: float) -> float | None:
    """None stands for a ratio that does not exist: int4 cost nothing."""
    return float(value) if np.isfinite(value) else None


def flat_table(rows: list[dict]) -> pd.DataFrame:
    """The columns of the card's tables."""
    return pd.DataFrame(
        {
            "variant": row["name"],
            "accuracy": row["mmlu"]["accuracy"],
            "stderr": row["mmlu"]["stderr"],
            "normalized_degradation": row["normalized_degradation"],
            "recovered": row["recovered"],
            "peak_gb": row["memory"]["peak_gb"],
            "peak_reduction": row["memory"]["reduction"],
            "checkpoint_gb": row["memory"]["checkpoint_gb"],
            "checkpoint_reduction": row["memory"]["checkpoint_reduction"],
            "latency_s": row["latency"]["mean_s"],
            "speedup": row["latency"]["speedup"],
        }
        for row in rows
    )


if __name__ == "__main__":
    errors.run(main)
