"""The summary as tables: summary.csv, and what a reader of the log looks for."""

from collections.abc import Mapping

import pandas as pd

from int4_qat.results import measurements
from int4_qat.results.measurements import MMLU, Measurement

NOT_RESOLVED = "not resolved"


def flat(rows: list[dict], measured: Mapping[str, list[Measurement]]) -> pd.DataFrame:
    """Return the columns of the card's tables; a ratio that is not resolved is empty."""
    return pd.DataFrame(flat_row(row, measured[row["name"]]) for row in rows)


def flat_row(row: dict, measured: list[Measurement]) -> dict:
    """Return one row: what MMLU gives, what was recovered of it, and the other measurements."""
    score, recovered = row[MMLU.name], row["recovered_ci95"] or [None, None]
    return {
        "variant": row["name"],
        "accuracy": score["accuracy"],
        "stderr": score["stderr"],
        "accuracy_low": score["accuracy_ci95"][0],
        "accuracy_high": score["accuracy_ci95"][1],
        "normalized_degradation": row["normalized_degradation"],
        "recovered": row["recovered"],
        "recovered_low": recovered[0],
        "recovered_high": recovered[1],
        **{column: value for one in measured for column, value in columns(row, one).items()},
        **{f"speedup_batch_{batch['batch_size']}": batch["speedup"] for batch in row["latency"]["batches"][1:]},
    }


def columns(row: dict, measurement: Measurement) -> dict:
    """Return the columns of one measurement."""
    shown = measurements.part(row, measurement)
    return {column: shown[key] for column, key in measurement.columns.items()}


def printed_row(row: dict, measured: list[Measurement]) -> dict:
    """Return one row of the log's table of variants."""
    score = row[MMLU.name]
    return {
        "variant": row["name"],
        "accuracy": between(score["accuracy"], score["accuracy_ci95"], "{:.2%}"),
        "normalized_degradation": between(row["normalized_degradation"], None, "{:+.1%}"),
        "recovered": between(row["recovered"], row["recovered_ci95"], "{:.0%}"),
        **{column: columns(row, one)[column] for one in measured for column in one.printed},
    }


def printed(summary: dict, measured: Mapping[str, list[Measurement]]) -> dict[str, pd.DataFrame]:
    """Return what a reader of the log looks for, by title."""
    rows, compared = summary["variants"], summary["comparisons"]
    tables = {
        "variants": pd.DataFrame(printed_row(row, measured[row["name"]]) for row in rows),
        "accuracy differences, and what they hide": pd.DataFrame(
            {
                "variant": pair["variant"],
                "against": pair["reference"],
                "difference": between(pair["difference"], pair["difference_ci95"], "{:+.2%}"),
                "settled": "yes" if pair["resolved"] else NOT_RESOLVED,
                "mcnemar_p": f"{pair['mcnemar_p']:.2g}",
                "of_all_pairs": f"{pair['mcnemar_p_holm']:.2g}",
                "wrong_to_right": f"{pair['wrong_to_right']:.2%}",
                "right_to_wrong": f"{pair['right_to_wrong']:.2%}",
                "log_likelihood": between(**pair["log_likelihood_change"], form="{:+.3f}"),
                "kl_divergence": between(**pair["kl_divergence"], form="{:.4f}"),
            }
            for pair in compared
        ),
    }
    over_seeds = pd.DataFrame(
        {
            "variants": " ".join(group["variants"]),
            "against": " ".join(group.get("references", [])),
            "mean": between(group["mean"], group["ci95"], "{:+.2%}"),
            "recovered": between(group["recovered"], group["recovered_ci95"], "{:.0%}") if "recovered" in group else "",
            "sd_between_seeds": group["sd_between_seeds"],
            "stderr_within_questions": group["stderr_within_questions"],
        }
        for groups in summary["seeds"].values()
        for group in groups
    )
    return tables | ({} if over_seeds.empty else {"over training seeds": over_seeds})


def between(mean: float | None, ci95: list[float] | None, form: str) -> str:
    """Return a value with its interval, if it has one."""
    if mean is None:
        return NOT_RESOLVED
    return form.format(mean) + (f" [{form.format(ci95[0])}, {form.format(ci95[1])}]" if ci95 else "")
