"""Turn the summary into tables: summary.csv, and those of the log."""

from collections.abc import Mapping

import pandas as pd

from int4_qat.config import metric_names
from int4_qat.results import measured_files, metrics, verdict
from int4_qat.results.measurements import DIVERGENCE, Measurement

NOT_RESOLVED = "not resolved"


def flat(rows: list[dict], measured: Mapping[str, list[Measurement]]) -> pd.DataFrame:
    """Return the columns of the card's tables, one row per variant; a ratio that is not resolved is empty."""
    return pd.DataFrame(flat_row(row, measured[row["name"]]) for row in rows)


def flat_row(row: dict, measured: list[Measurement]) -> dict:
    """Return one row: the recovery of the headline, and the columns of each measurement."""
    return {
        "variant": row["name"],
        "normalized_degradation": row["normalized_degradation"],
        **recoveries("recovered", row),
        **{column: value for one in measured for column, value in columns(row, one).items()},
        **speedups(row["latency"]),
    }


def speedups(latency: dict | None) -> dict[str, float | None]:
    """Return the speedup of each batch size after the first."""
    further = latency["batches"][1:] if latency else []
    return {f"speedup_batch_{batch['batch_size']}": batch["speedup"] for batch in further}


def columns(row: dict, measurement: Measurement) -> dict:
    """Return the columns of one measurement."""
    shown = measured_files.part(row, measurement)
    if measurement is DIVERGENCE:
        return {column: value for text in shown for column, value in columns_of_text(text, shown[text]).items()}
    return {column: shown[key] for column, key in measurement.columns.items()} | columns_of_samples(shown, measurement)


def columns_of_samples(shown: dict, measurement: Measurement) -> dict:
    """Return the columns of interval and recovery of a measurement that has a table of samples."""
    if not measurement.samples:
        return {}
    name = next(iter(measurement.columns))
    low, high = shown[measurement.samples.interval] or (None, None)
    return {f"{name}_low": low, f"{name}_high": high} | recoveries(f"{measurement.name}_recovered", shown)


def recoveries(name: str, shown: dict) -> dict:
    """Return the columns of recovery and, in a run with calibrated bases, of recovery of what the best of them lost."""
    found = in_columns(name, shown["recovered"], shown["recovered_ci95"])
    if not shown["calibrated_baseline"]:
        return found
    of_calibrated = shown["recovered_of_calibrated"], shown["recovered_of_calibrated_ci95"]
    return found | in_columns(f"{name}_of_calibrated", *of_calibrated)


def columns_of_text(text: str, shown: dict) -> dict:
    """Return the columns of the divergence on one text."""
    found = {}
    for metric, recovered in shown["recovered"].items():
        name = metric_names.of_text(text, metric)
        found |= in_columns(name, **shown[metric])
        found |= in_columns(f"{name}_recovered", recovered["value"], recovered["ci95"])
        of_calibrated = recovered["of_calibrated"]
        if of_calibrated["baseline"]:
            ends = of_calibrated["value"], of_calibrated["ci95"]
            found |= in_columns(f"{name}_recovered_of_calibrated", *ends)
    own = shown["kl_from_own_bf16"] or {"value": None, "ci95": None}
    found |= in_columns(metric_names.of_text(text, "kl_from_own_bf16"), **own)
    return found | in_columns(metric_names.of_text(text, "perplexity_ratio"), **shown["perplexity_ratio"])


def in_columns(name: str, value: float | None, ci95: list[float] | None) -> dict:
    """Return a value and the ends of its interval as columns."""
    low, high = ci95 or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def printed_row(row: dict, measured: list[Measurement], headline: dict) -> dict:
    """Return one row of the log's table of variants."""
    return {
        "variant": row["name"],
        **(
            {"accuracy": between(row["mmlu"]["accuracy"], row["mmlu"]["accuracy_ci95"], "{:.2%}")}
            if row["mmlu"]
            else {}
        ),
        "normalized_degradation": between(row["normalized_degradation"], None, "{:+.1%}"),
        f"recovered of {headline['metric']}": between(row["recovered"], row["recovered_ci95"], "{:.0%}"),
        **of_calibrated(
            row["calibrated_baseline"], row["recovered_of_calibrated"], row["recovered_of_calibrated_ci95"]
        ),
        **{column: columns(row, one)[column] for one in measured for column in one.printed},
    }


def of_calibrated(baseline: str | None, value: float | None, ci95: list[float] | None) -> dict:
    """Return the log's column for how much was recovered of what a calibrated base lost, if there is such a base."""
    return {f"recovered of {baseline}'s cost": between(value, ci95, "{:.0%}")} if baseline else {}


def divergence(rows: list[dict]) -> pd.DataFrame:
    """Return the log's table of the divergence from base-bf16, one row per text and variant."""
    return pd.DataFrame(
        {
            "text": text,
            "variant": row["name"],
            "kl": shown_between(shown["kl"], "{:.4f}"),
            "top1_agreement": shown_between(shown["top1_agreement"], "{:.2%}"),
            "perplexity": shown_between(shown["perplexity"], "{:.4g}"),
            "recovered of kl": shown_between(shown["recovered"]["kl"], "{:.0%}"),
            **of_calibrated(*(shown["recovered"]["kl"]["of_calibrated"][key] for key in ("baseline", "value", "ci95"))),
        }
        for row in rows
        for text, shown in (row["divergence"] or {}).items()
    )


def printed(summary: dict, measured: Mapping[str, list[Measurement]]) -> dict[str, pd.DataFrame]:
    """Return the log's tables by title, without empty ones."""
    rows, headline = summary["variants"], summary["headline"]
    compared = [pair for pair in summary["comparisons"] if pair["metric"] == headline["metric"]]
    differing = f"differences of {headline['metric']}, above 0 is better"
    tables = {
        "divergence from base-bf16": divergence(rows),
        "variants": pd.DataFrame(printed_row(row, measured[row["name"]], headline) for row in rows),
        differing: pd.DataFrame(differences(pair, headline) for pair in compared),
        verdict.QUESTION: pd.DataFrame(
            {
                "metric": each["metric"],
                "variant": each["variant"],
                "against": f"{each['calibrated_baseline']} ({each['method']})",
                "difference": verdict.difference(each),
                "training_won": verdict.SAID[each["training_won"]],
            }
            for each in summary["training_against_calibration"]
        ),
    }
    over_seeds = pd.DataFrame(
        {
            "variants": " ".join(group["variants"]),
            "against": " ".join(group.get("references", [])),
            "mean": between(group["mean"], group["ci95"], form_of(headline)),
            "recovered": between(group["recovered"], group["recovered_ci95"], "{:.0%}") if "recovered" in group else "",
            "sd_between_seeds": group["sd_between_seeds"],
            "stderr_within_units": group["stderr_within_units"],
        }
        for groups in summary["seeds"].values()
        for group in groups
    )
    return {title: table for title, table in (tables | {"over training seeds": over_seeds}).items() if not table.empty}


def differences(pair: dict, headline: dict) -> dict:
    """Return one row of the log's table of differences; for answers, also the changes that a difference hides."""
    found = {
        "variant": pair["variant"],
        "against": pair["reference"],
        "difference": between(pair["difference"], pair["difference_ci95"], form_of(headline)),
        "resolved": "yes" if pair["resolved"] else NOT_RESOLVED,
    }
    if "mcnemar_p" not in pair:
        return found
    change, kl = pair["log_likelihood_change"], pair["kl_divergence"]
    return found | {
        "mcnemar_p": f"{pair['mcnemar_p']:.2g}",
        "p_of_all_pairs": f"{pair['mcnemar_p_holm']:.2g}",
        "wrong_to_right": f"{pair['wrong_to_right']:.2%}",
        "right_to_wrong": f"{pair['right_to_wrong']:.2%}",
        "log_likelihood": between(change["mean"], change["ci95"], "{:+.3f}"),
        "kl_divergence": between(kl["mean"], kl["ci95"], "{:.4f}"),
    }


def form_of(headline: dict) -> str:
    """Return the format in which differences of the headline are written."""
    return "{:+.2%}" if headline["unit"] == metrics.SHARE.unit else "{:+.4f}"


def shown_between(shown: dict, form: str) -> str:
    """Return a value of the summary as text, with its interval if it has one."""
    return between(shown["value"], shown["ci95"], form)


def between(value: float | None, ci95: list[float] | None, form: str) -> str:
    """Return a value as text, with its interval if it has one."""
    if value is None:
        return NOT_RESOLVED
    return form.format(value) + (f" [{form.format(ci95[0])}, {form.format(ci95[1])}]" if ci95 else "")
