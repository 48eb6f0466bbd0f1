"""Name the metrics that a config asks for, one of which is the headline."""

from collections.abc import Iterator

MMLU, CHARTQA = "mmlu", "chartqa"
OF_TEXTS = ("kl", "top1_agreement", "perplexity")
# Columns of summary.csv without a metric's name, and the suffixes of the others; a test compares both with the file.
COLUMNS = (
    *("variant", "normalized_degradation", "recovered", "recovered_low", "recovered_high"),
    *("recovered_of_calibrated", "recovered_of_calibrated_low", "recovered_of_calibrated_high"),
    *("accuracy", "stderr", "accuracy_low", "accuracy_high"),
    *("peak_gb", "peak_reduction", "checkpoint_gb", "checkpoint_reduction"),
    *("latency_s", "speedup", "speedup_std", "bandwidth_limit_percent", "relative_logit_difference"),
)
SUFFIXES = (
    *("low", "high", "stderr", "samples", "recovered", "recovered_low", "recovered_high"),
    *("recovered_of_calibrated", "recovered_of_calibrated_low", "recovered_of_calibrated_high"),
    *("ratio", "ratio_low", "ratio_high", "from_own_bf16", "from_own_bf16_low", "from_own_bf16_high"),
)


def of(evaluation: dict) -> list[str]:
    """Return the names of all metrics that the settings of `evaluation` ask for."""
    return [
        *question_sets(evaluation),
        *(task["task"] for task in evaluation["tasks"]),
        *([CHARTQA] if evaluation[CHARTQA] else []),
        *(of_text(text, metric) for text in texts(evaluation) for metric in OF_TEXTS),
    ]


def texts(evaluation: dict) -> dict[str, dict]:
    """Return the held-out texts by their names."""
    return evaluation["divergence"]["texts"] if evaluation["divergence"] else {}


def question_sets(evaluation: dict) -> list[str]:
    """Return the names of the question sets whose every answer is kept: MMLU and the user's own."""
    return [*([MMLU] if evaluation[MMLU] else []), *(entry["name"] for entry in evaluation["questions"])]


def of_text(text: str, metric: str) -> str:
    """Return the name of a metric of a text, such as 'wikitext_kl'."""
    return f"{text}_{metric}"


def headline(evaluation: dict) -> str | None:
    """Return the metric that the summary reports first: the one that the config names, or the first one, or None."""
    return evaluation["headline"] or next(iter(of(evaluation)), None)


def shares(evaluation: dict) -> list[str]:
    """Return the metrics that are shares, of questions or of tokens."""
    agreements = [of_text(text, "top1_agreement") for text in texts(evaluation)]
    return [*question_sets(evaluation), CHARTQA, *agreements]


def problems(evaluation: dict) -> Iterator[str]:
    """Yield a line for each metric's name that is already taken, for a lack of metrics, and for an unknown headline."""
    names = of(evaluation)
    derived = {f"{name}_{suffix}" for name in names for suffix in SUFFIXES}
    for name in sorted(set(names) & {*COLUMNS, *derived}):
        yield f"evaluation: expected metrics with other names than summary.csv's columns, found '{name}'"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"evaluation: expected metrics with different names, found '{name}' twice"
    if not names:
        yield f"evaluation: expected a metric ({MMLU}, questions, tasks, {CHARTQA} or divergence), found none"
    elif headline(evaluation) not in names:
        yield f"evaluation.headline: expected null or one of {', '.join(names)}, found '{evaluation['headline']}'"
