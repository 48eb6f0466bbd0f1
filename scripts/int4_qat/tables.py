"""The summary as tables: summary.csv, and what a reader of the log looks for."""

import pandas as pd

NOT_RESOLVED = "not resolved"


def flat(rows: list[dict]) -> pd.DataFrame:
    """The columns of the card's tables; a ratio that is not resolved is empty."""
    unbounded = [None, None]
    return pd.DataFrame(
        {
            "variant": row["name"],
            "accuracy": row["mmlu"]["accuracy"],
            "stderr": row["mmlu"]["stderr"],
            "accuracy_low": row["mmlu"]["accuracy_ci95"][0],
            "accuracy_high": row["mmlu"]["accuracy_ci95"][1],
            **{task: found["value"] for task, found in row["tasks"].items()},
            **{f"{task}_stderr": found["stderr"] for task, found in row["tasks"].items()},
            **({"chartqa": row["chartqa"]["relaxed_overall"]} if row["chartqa"] else {}),
            "normalized_degradation": row["normalized_degradation"],
            "recovered": row["recovered"],
            "recovered_low": (row["recovered_ci95"] or unbounded)[0],
            "recovered_high": (row["recovered_ci95"] or unbounded)[1],
            "peak_gb": row["memory"]["peak_gb"],
            "peak_reduction": row["memory"]["reduction"],
            "checkpoint_gb": row["memory"]["checkpoint_gb"],
            "checkpoint_reduction": row["memory"]["checkpoint_reduction"],
            "latency_s": row["latency"]["mean_s"],
            "speedup": row["latency"]["speedup"],
            "speedup_std": row["latency"]["speedup_std"],
            "bandwidth_limit_percent": row["latency"]["bandwidth_limit_percent"],
            "relative_logit_difference": row["parity"] and row["parity"]["relative_logit_difference"],
            **{f"speedup_batch_{batch['batch_size']}": batch["speedup"] for batch in row["latency"]["batches"][1:]},
        }
        for row in rows
    )


def printed(summary: dict) -> dict[str, pd.DataFrame]:
    """What a reader of the log looks for, by title."""
    rows, compared = summary["variants"], summary["comparisons"]
    tables = {
        "variants": pd.DataFrame(
            {
                "variant": row["name"],
                "accuracy": between(row["mmlu"]["accuracy"], row["mmlu"]["accuracy_ci95"], "{:.2%}"),
                "normalized_degradation": between(row["normalized_degradation"], None, "{:+.1%}"),
                "recovered": between(row["recovered"], row["recovered_ci95"], "{:.0%}"),
                **{task: found["value"] for task, found in row["tasks"].items()},
                **({"chartqa": row["chartqa"]["relaxed_overall"]} if row["chartqa"] else {}),
                "peak_gb": row["memory"]["peak_gb"],
                "checkpoint_gb": row["memory"]["checkpoint_gb"],
                "latency_s": row["latency"]["mean_s"],
                "training_differs_by": f"{row['parity']['relative_logit_difference']:.1e}" if row["parity"] else "",
            }
            for row in rows
        ),
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
    """A value with its interval, if it has one."""
    if mean is None:
        return NOT_RESOLVED
    return form.format(mean) + (f" [{form.format(ci95[0])}, {form.format(ci95[1])}]" if ci95 else "")
