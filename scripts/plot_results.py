"""Draw the results of a model, each plot as SVG and PNG: divergence, headline, recovery, training, memory, latency.

The background is transparent and the text grey, so that a plot is readable on a light and on a dark page. The same
results give the same bytes.

    python scripts/plot_results.py --summary results/demo/summary.json --results results/demo --arms lora qat \\
        --colours '{"base": "#7a7a7a", "lora": "#D55E00", "qat": "#0072B2"}' --output results/demo/plots
"""

import argparse
import json
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from int4_qat.config import metric_names, variants
from int4_qat.data import parquet_files
from int4_qat.results import metrics, plot_parts, verdict
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError
from int4_qat.training import log_table

FORMATS = ("svg", "png")
SMOOTHING = 10
SHADES = {"weights": 1.0, "cache, predicted": 0.6, "activations and the rest": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--summary", required=True, type=Path, help="path of summary.json")
    parser.add_argument("--results", required=True, type=Path, help="folder with the results of the model")
    parser.add_argument("--arms", nargs="*", default=[], help="arms whose training loss is plotted")
    parser.add_argument("--colours", required=True, type=json.loads, help="#rrggbb of base and of each arm, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="folder for the plots")
    arguments = parser.parse_args()
    summary = files.read_json(arguments.summary)
    rows = summary["variants"]
    groups = [[variants.split(name)[0] for name in group["variants"]] for group in summary["seeds"]["headline"]]
    colours = plot_parts.assign_colours(variants.weights_of([row["name"] for row in rows]), groups, arguments.colours)
    marks = plot_parts.assign_marks([row["name"] for row in rows], colours)
    references = list(dict.fromkeys(row["quantized_baseline"] for row in rows))
    verdicts = summary["training_against_calibration"]
    matplotlib.rcParams.update(plot_parts.STYLE)
    figures = {
        **({"divergence": plot_divergence(rows, marks, verdicts)} if rows[0]["divergence"] else {}),
        "headline": plot_headline(rows, references, marks, summary["headline"], verdicts),
        **plot_subjects(arguments.results, rows, references, marks, summary["headline"]["metric"]),
        "training_loss": plot_training(
            {arm: read_training(arguments.results / arm) for arm in arguments.arms}, colours
        ),
        "memory": plot_memory(rows, colours),
        "latency": plot_latency(rows, colours),
    }
    for name, figure in figures.items():
        figure.suptitle(f"{summary['model']}: {figure.get_suptitle()}")
        for form in FORMATS:
            with files.whole(arguments.output / f"{name}.{form}") as unfinished:
                # A date would make the same plot a different file.
                figure.savefig(unfinished, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)


def read_accuracies(results: Path, rows: list[dict], headline: str) -> pd.DataFrame:
    """Return the accuracies in percent, with one row per subject and one column per variant."""
    columns = {}
    for row in rows:
        path = results / row["source"][f"{headline}_samples"]
        samples = parquet_files.open_file(path, ["subject", "correct"]).read(["subject", "correct"]).to_pandas()
        columns[row["name"]] = 100 * samples.groupby("subject")["correct"].mean()
    return pd.DataFrame(columns)


def read_training(folder: Path) -> pd.DataFrame:
    """Return the loss and the held-out KL by step; raise InputError if the table is not finetune's."""
    try:
        table = pd.read_csv(folder / "training.csv", index_col="step")
        return table[["loss"]].join(
            table.get(log_table.HELD_OUT_KL, pd.Series(name=log_table.HELD_OUT_KL, dtype=float))
        )
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{folder / 'training.csv'}: expected a table with step and loss ({error})") from None


def titled(title: str, verdicts: list[dict], metric: str) -> str:
    """Return a title, with lines below it that say whether training beat the best calibrated base by a metric."""
    said = [verdict.sentence(each) for each in verdicts if each["metric"] == metric]
    return "\n".join([title, *([verdict.QUESTION, *said] if said else [])])


def plot_divergence(rows: list[dict], marks: dict[str, dict], verdicts: list[dict]) -> Figure:
    """Draw each variant's KL from base-bf16 and its agreement with it, with intervals, one row of panels per text."""
    texts = list(rows[0]["divergence"])
    title = titled("divergence from base-bf16 on held-out texts", verdicts, metric_names.of_text(texts[0], "kl"))
    figure = Figure(figsize=(8, 0.4 + len(texts) * (0.9 + 0.35 * len(rows)) + 0.2 * title.count("\n")))
    figure.suptitle(title)
    for text, (left, right) in zip(texts, figure.subplots(len(texts), 2, sharey=True, squeeze=False), strict=True):
        for place, row in enumerate(rows):
            found, mark = row["divergence"][text], marks[row["name"]]
            for axes, metric, scale in ((left, "kl", 1), (right, "top1_agreement", 100)):
                value, ci95 = found[metric]["value"], found[metric]["ci95"]
                axes.errorbar(scale * value, place, **plot_parts.spread(value, ci95, scale), **mark)
        plot_parts.name_rows(left, [row["name"] for row in rows])
        left.set_xlabel(f"{text}: KL (nats per token), lower is better, 95% intervals")
        right.set_xlabel("same likeliest token (%)")
    return figure


def plot_headline(
    rows: list[dict], references: list[str], marks: dict[str, dict], headline: dict, verdicts: list[dict]
) -> Figure:
    """Draw the headline of each variant with its interval, and the lines of the base in bf16 and quantized."""
    rows = [row for row in rows if row["headline"]]
    title = f"{headline['metric']}, and how much of the quantization's cost was recovered"
    title = titled(title, verdicts, headline["metric"])
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows) + 0.2 * title.count("\n")))
    figure.suptitle(title)
    axes = figure.add_subplot()
    scale, unit = (100, "%") if headline["unit"] == metrics.SHARE.unit else (1, headline["unit"])
    shown = {row["name"]: scale * row["headline"]["value"] for row in rows}
    plot_parts.draw_baselines(
        axes, shown[variants.BASELINE], {name: shown[name] for name in references if name in shown}
    )
    for place, row in enumerate(rows):
        interval = plot_parts.spread(row["headline"]["value"], row["headline"]["ci95"], scale)
        axes.errorbar(shown[row["name"]], place, **interval, **marks[row["name"]])
        if row["name"] not in (variants.BASELINE, *references):
            axes.text(1.05, place, describe_recovery(row), transform=axes.get_yaxis_transform(), va="center")
    plot_parts.name_rows(axes, list(shown))
    direction = "" if headline["higher_is_better"] else ", lower is better"
    axes.set_xlabel(f"{headline['metric']}{f' ({unit})' if unit else ''}{direction}, 95% intervals")
    return figure


def plot_subjects(
    results: Path, rows: list[dict], references: list[str], marks: dict[str, dict], headline: str
) -> dict[str, Figure]:
    """Return the plots by group and by subject, if the headline has subjects."""
    if not rows[0]["by_category"]:
        return {}
    accuracies = read_accuracies(results, rows, headline)
    return {
        "recovery_by_group": plot_recovery_by_group(rows, references, marks),
        "recovery_by_subject": plot_recovery_by_subject(accuracies, references, marks),
    }


def describe_recovery(row: dict) -> str:
    """Return a recovery as '65% recovered [58, 71]', or 'not resolved'."""
    if not row["recovered_resolved"]:
        return "not resolved"
    low, high = row["recovered_ci95"]
    return f"{row['recovered']:.0%} recovered [{100 * low:.0f}, {100 * high:.0f}]"


def plot_recovery_by_group(rows: list[dict], references: list[str], marks: dict[str, dict]) -> Figure:
    """Draw how much each quantized variant recovered over all subjects and in each group of them."""
    shipped = [row for row in rows if plot_parts.is_shipped(row["name"], references)]
    groups = ["all", *rows[0]["by_category"]]
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(groups) * max(len(shipped), 1)))
    figure.suptitle("recovered of the quantization's cost, by subject group")
    axes = figure.add_subplot()
    plot_parts.draw_baselines(axes, 100, dict.fromkeys(references, 0))
    for index, row in enumerate(shipped):
        for place, group in enumerate(groups):
            at = place + (index - (len(shipped) - 1) / 2) * 0.7 / len(shipped)
            recovery = row if group == "all" else row["by_category"][group]
            label = row["name"] if group == "all" else None
            style = marks[row["name"]]
            if recovery["recovered_resolved"]:
                value = recovery["recovered"]
                axes.errorbar(
                    100 * value, at, **plot_parts.spread(value, recovery["recovered_ci95"]), **style, label=label
                )
            else:
                axes.text(2, at, "not resolved", va="center", color=style["color"])
                axes.plot([], [], **style, label=label)
    plot_parts.name_rows(axes, [group.replace("_", " ") for group in groups])
    axes.set_xlabel("recovered (%), 95% intervals")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def plot_recovery_by_subject(accuracies: pd.DataFrame, references: list[str], marks: dict[str, dict]) -> Figure:
    """Draw each quantized variant between the quantized base and the bf16 base, by subject, the costliest first."""
    cost = accuracies[variants.BASELINE] - accuracies[references].min(axis=1)
    accuracies = accuracies.loc[(-cost).sort_values(kind="stable").index]
    places = range(len(accuracies))
    figure = Figure(figsize=(8, 1.8 + 0.2 * len(accuracies)))
    figure.suptitle("accuracy by subject, with the largest cost of quantization first")
    axes = figure.add_subplot()
    axes.hlines(
        places, accuracies[references].min(axis=1), accuracies[variants.BASELINE], color=plot_parts.GREY, linewidth=1
    )
    shipped = [name for name in accuracies if plot_parts.is_shipped(name, references)]
    for name in (*references, variants.BASELINE, *shipped):
        axes.plot(accuracies[name], places, **marks[name], markersize=5, alpha=0.9, label=name)
    plot_parts.name_rows(axes, list(accuracies.index.str.replace("_", " ")), fontsize=8)
    axes.set_xlabel("accuracy (%); a subject alone has too few questions to settle anything")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def plot_training(tables: dict[str, pd.DataFrame], colours: dict[str, str]) -> Figure:
    """Draw each arm's loss by step with its running median, and below it the KL on held-out rows, if any arm has it."""
    measured = {arm: table[log_table.HELD_OUT_KL].dropna() for arm, table in tables.items()}
    measured = {arm: kl for arm, kl in measured.items() if len(kl)}
    figure = Figure(figsize=(8, 3.6 + 2.4 * bool(measured)))
    figure.suptitle(f"training loss, and its median over {SMOOTHING} steps")
    axes, *below = figure.subplots(1 + bool(measured), 1, sharex=True, squeeze=False).flat
    for arm, table in tables.items():
        loss = table["loss"].dropna()
        axes.plot(loss, color=colours[arm], alpha=0.5, linewidth=1)
        axes.plot(loss.rolling(SMOOTHING, min_periods=1).median(), color=colours[arm], linewidth=2, label=arm)
    axes.set_ylabel("loss (nats per token)")
    for lower in below:
        for arm, kl in measured.items():
            lower.plot(kl, color=colours[arm], marker="o", markersize=4)
        lower.set_ylabel("KL on held-out rows\n(nats per token)")
    for each in (axes, *below):
        each.set_yscale("log")
    (below or [axes])[0].set_xlabel("step")
    if tables:
        figure.legend(loc="outside right center")
    return figure


def plot_memory(rows: list[dict], colours: dict[str, str]) -> Figure:
    """Draw the peak memory of each variant as a bar of stacked parts."""
    memories = [row["memory"] for row in rows]
    scale, unit = (1, "GB") if max(memory["peak_gb"] for memory in memories) >= 1 else (1e3, "MB")
    figure = Figure(figsize=(8, 1.6 + 0.4 * len(rows)))
    figure.suptitle("peak memory while generating" + note_dequantized(memories))
    axes = figure.add_subplot()
    for place, (row, memory) in enumerate(zip(rows, memories, strict=True)):
        left = 0
        for part, alpha in zip(parts_of(memory), SHADES.values(), strict=True):
            axes.barh(
                place, scale * part, left=left, color=colours[variants.split(row["name"])[0]], alpha=alpha, height=0.6
            )
            left += scale * part
        axes.text(left, place, f" {scale * memory['peak_gb']:.3g}", va="center")
    plot_parts.name_rows(axes, [row["name"] for row in rows])
    axes.set_xlabel(f"peak memory ({unit})")
    handles = [Patch(color=plot_parts.GREY, alpha=alpha, label=part) for part, alpha in SHADES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(SHADES))
    return figure


def parts_of(memory: dict) -> list[float]:
    """Return the gigabytes of the weights, of the cache as predicted, and of the rest of the peak."""
    weights, cache = memory["weights_gb"], memory["predicted"]["cache_gb"]
    return [weights, cache, max(memory["peak_gb"] - weights - cache, 0)]


def plot_latency(rows: list[dict], colours: dict[str, str]) -> Figure:
    """Draw the mean latency in seconds with the 10th to the 90th percentile, one panel per batch size."""
    latencies = {row["name"]: row["latency"] for row in rows if row["latency"]}
    batch_sizes = [batch["batch_size"] for batch in latencies[variants.BASELINE]["batches"]]
    figure = Figure(figsize=(8, 1.6 + 0.4 * len(latencies)))
    output_len = latencies[variants.BASELINE]["output_len"]
    figure.suptitle(f"latency of {output_len} tokens" + note_dequantized(list(latencies.values())))
    panels = figure.subplots(1, len(batch_sizes), sharey=True, squeeze=False)[0]
    for number, (axes, batch_size) in enumerate(zip(panels, batch_sizes, strict=True)):
        for place, (name, latency) in enumerate(latencies.items()):
            draw_latency(axes, place, latency["batches"][number], colours[variants.split(name)[0]])
        plot_parts.name_rows(axes, list(latencies))
        axes.set_xlabel(f"mean (s), 10th to 90th percentile\nbatch size {batch_size}")
    return figure


def draw_latency(axes, place: int, latency: dict, colour: str) -> None:
    """Draw a bar and its whisker, which is visible on the bar."""
    mean, percentiles = latency["mean_s"], latency["percentiles_s"]
    whisker = [[max(mean - percentiles["10"], 0)], [max(percentiles["90"] - mean, 0)]]
    axes.barh(place, mean, 0.6, facecolor=(colour, 0.5), edgecolor=colour)
    axes.errorbar(mean, place, xerr=whisker, color=colour, capsize=3)


def note_dequantized(measured: list[dict]) -> str:
    """Return a note that figures of dequantized weights are not comparable, empty if there are none."""
    return "\n(quantized weights ran as floats: do not compare)" if any(one["dequantized"] for one in measured) else ""


if __name__ == "__main__":
    errors.run(main)
