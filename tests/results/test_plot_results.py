"""Test that every plot is drawn, is reproducible byte for byte, and is legible on a light and on a dark page."""

import itertools
import json
import re
import shutil

import matplotlib.image
import pandas as pd
import pytest
import yaml
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import plot_results
from int4_qat.results import plot_parts
from programs import ROOT, VARIANTS, run_script
from test_summarize import run

PLOTS = ["divergence", "headline", "recovery_by_group", "recovery_by_subject", "training_loss", "memory", "latency"]
FILES = sorted(f"{plot}.{form}" for plot in PLOTS for form in plot_results.FORMATS)
COLOURS = yaml.safe_load((ROOT / "config.yaml").read_text())["plots"]["colours"]
PAGES = ["#ffffff", "#0d1117"]


def draw(results, output="plots", arms=("qat",)):
    return run_script(
        "plot_results",
        *("--summary", results / "summary.json", "--results", results, "--arms", *arms),
        *("--colours", json.dumps(COLOURS), "--output", results / output),
    )


@pytest.fixture
def summarized(results):
    assert run(results).returncode == 0
    (results / "qat").mkdir()
    pd.DataFrame({"step": range(1, 31), "loss": 0.5}).to_csv(results / "qat" / "training.csv", index=False)
    return results


def test_the_same_results_are_the_same_bytes(summarized):
    for output in ("once", "twice"):
        result = draw(summarized, output)
        assert result.returncode == 0, result.stderr
    found = {
        output: {path.name: path.read_bytes() for path in (summarized / output).iterdir()}
        for output in ("once", "twice")
    }
    assert sorted(found["once"]) == FILES
    assert found["once"] == found["twice"]
    for plot in PLOTS:
        assert (matplotlib.image.imread(summarized / "once" / f"{plot}.png")[[0, -1], [0, -1], 3] == 0).all()


def test_what_was_measured_of_held_out_rows_is_below_the_loss(summarized):
    label, path = "KL on held-out rows", summarized / "qat" / "training.csv"
    assert draw(summarized).returncode == 0
    assert label not in (summarized / "plots" / "training_loss.svg").read_text()
    steps = pd.DataFrame({"step": range(31), "loss": [None] + 30 * [0.5], "held_out_kl": [0.2] + 29 * [None] + [0.1]})
    steps.to_csv(path, index=False)
    assert draw(summarized).returncode == 0
    assert label in (summarized / "plots" / "training_loss.svg").read_text()


def test_what_is_not_resolved_is_said(summarized):
    for name in ("mmlu.json", "mmlu_samples.parquet"):
        shutil.copy(summarized / "base-bf16" / name, summarized / "base-int4")
    assert run(summarized).returncode == 0
    assert draw(summarized).returncode == 0
    for plot in ("headline", "recovery_by_group"):
        assert "not resolved" in (summarized / "plots" / f"{plot}.svg").read_text()


def test_each_quantized_base_has_its_line(summarized):
    summary = json.loads((summarized / "summary.json").read_text())
    twins = [row | {"name": row["name"].replace("int4", "w4a16")} for row in summary["variants"][1:]]
    summary["variants"] += [row | {"quantized_baseline": "base-w4a16"} for row in twins]
    for row in twins:
        shutil.copytree(summarized / row["name"].replace("w4a16", "int4"), summarized / row["name"])
    (summarized / "summary.json").write_text(json.dumps(summary))
    assert draw(summarized).returncode == 0
    for plot in ("headline", "recovery_by_group"):
        drawn = (summarized / "plots" / f"{plot}.svg").read_text()
        assert {"<!--  base-int4  -->", "<!--  base-w4a16  -->", "<!--  base-bf16  -->"} <= set(
            re.findall("<!--.*-->", drawn)
        )


@pytest.mark.parametrize(
    "quantized", [{"base-int4": 48.7, "base-w4a16": 48.6}, {"base-int4": 48.9, "base-w4a16": 48.7}]
)
def test_names_of_baselines_do_not_overlap(quantized):
    figure = Figure(figsize=(8, 3))
    axes = figure.add_subplot(xlim=(47, 50))
    plot_parts.draw_baselines(axes, 48.8, quantized)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_quantizations_have_marks_of_their_own():
    colours = dict.fromkeys(("base", "qat"), "#000000")
    marks = plot_parts.assign_marks(["base-bf16", "base-int4", "qat-int4", "base-w4a16"], colours)
    shapes = [mark["marker"] for mark in marks.values()]
    assert shapes[1] == shapes[2]
    assert len(set(shapes)) == 3
    assert marks["base-bf16"]["markerfacecolor"] == "none"


def test_without_an_arm_there_are_plots_too(results):
    assert run(results, VARIANTS[:2]).returncode == 0
    assert draw(results, arms=[]).returncode == 0


def test_a_missing_log_is_one_line(summarized):
    (summarized / "qat" / "training.csv").unlink()
    result = draw(summarized)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        f"error: {summarized}/qat/training.csv: expected a table with step"
    )


def test_arms_that_differ_in_their_seed_share_a_colour():
    colours = plot_parts.assign_colours(["base", "a_1", "a_2", "b"], [["a_1", "a_2"]], {"base": "#000000"})
    assert colours["a_1"] == colours["a_2"]
    assert len({colours["base"], colours["a_1"], colours["b"]}) == 3


def luminance(colour):
    """Return the relative luminance of a colour (WCAG 2.2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("colour", sorted({*COLOURS.values(), *plot_parts.OTHERS, plot_parts.GREY}))
def test_every_colour_has_contrast(colour, page):
    """The contrast is at least 3 to 1, which WCAG 2.2 (1.4.11) requires of graphics."""
    low, high = sorted([luminance(colour), luminance(page)])
    assert (high + 0.05) / (low + 0.05) >= 3
