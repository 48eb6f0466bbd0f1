"""Provide what the plots have in common: colours, markers, intervals and the lines of the baselines."""

import itertools

from int4_qat.config import variants

GREY = "#7a7a7a"


# For arms without a colour: those of Okabe & Ito's (2008) colours that have contrast on both white and black.
OTHERS = ("#009E73", "#CC79A7", "#D55E00", "#0072B2")


STYLE = {
    "font.size": 10,
    "svg.hashsalt": "int4_qat",
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
}


MARKERS = ("o", "D", "^", "v", "P", "X")  # for the quantizations; bf16 has a square


def assign_colours(names: list[str], groups: list[list[str]], given: dict[str, str]) -> dict[str, str]:
    """Return a colour for each name: its own, or the colour shared by the arms that differ only in their seed."""
    first = {name: group[0] for group in groups for name in group}
    others = itertools.cycle(OTHERS)
    colours = dict(given)
    for name in names:
        leader = first.get(name, name)
        if leader not in colours:
            colours[leader] = next(others)
        colours.setdefault(name, colours[leader])
    return colours


def assign_marks(names: list[str], colours: dict[str, str]) -> dict[str, dict]:
    """Return a marker for each variant in its weights' colour: hollow for bf16, filled in the quantization's shape."""
    precisions = dict.fromkeys(variants.split(name)[1] for name in names if variants.is_quantized(name))
    shapes = {variants.BF16: "s"} | dict(zip(precisions, itertools.cycle(MARKERS), strict=False))
    return {
        name: {
            "marker": shapes[precision],
            "color": colours[weights],
            "markerfacecolor": "none" if precision == variants.BF16 else colours[weights],
            "linestyle": "none",
        }
        for name, (weights, precision) in ((name, variants.split(name)) for name in names)
    }


def spread(value: float, ci95: list[float] | None, scale: float = 100) -> dict:
    """Return an interval as arguments of matplotlib's errorbar, in percent or by another scale."""
    low, high = ci95 or (value, value)
    return {"xerr": [[max(scale * (value - low), 0)], [max(scale * (high - value), 0)]], "capsize": 3}


def is_shipped(name: str, references: list[str]) -> bool:
    """Return whether a variant is quantized and measured against another one, so that recovery applies to it."""
    return variants.is_quantized(name) and name not in references


def draw_baselines(axes, bf16: float, quantized: dict[str, float]) -> None:
    """Draw the lines between which 'recovered' is measured: one for base-bf16 and one for each quantized base."""
    ends = [bf16, *quantized.values()]
    axes.axvspan(min(ends), max(ends), color=GREY, alpha=0.12, linewidth=0)
    draw_baseline(axes, bf16, variants.BASELINE, "left")
    meets_bf16 = any(value > bf16 for value in quantized.values())
    for line, (name, value) in enumerate(quantized.items(), start=int(meets_bf16)):
        draw_baseline(axes, value, name, "right", line)


def draw_baseline(axes, value: float, name: str, side: str, line: int = 0) -> None:
    """Draw a vertical line across the plot, with its name above it.

    The name is aligned to the given side, and raised by `line` lines of text, since other names may be near.
    """
    axes.axvline(value, color=GREY, linestyle="--", linewidth=1)
    place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    axes.annotate(f" {name} ", (value, 1), (0, 2 + 12 * line), ha=side, va="bottom", **place)


def name_rows(axes, names: list[str], **options) -> None:
    """Label each row with a name, the first at the top."""
    axes.set_yticks(range(len(names)), names, **options)
    axes.set_ylim(len(names) - 0.5, -0.5)
