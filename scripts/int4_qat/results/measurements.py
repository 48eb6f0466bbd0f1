"""Declare the measurements: the file of each, the variants that have it, and what the summary shows of it.

A further measurement takes a program with its rule, a class for the content of its file, an entry here, and a section
of the card.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from int4_qat.config import metric_names, quantizations, variants
from int4_qat.results import against_baseline, calibrated_bases, metrics
from int4_qat.results.metrics import Metric
from int4_qat.results.schema.chartqa import ChartQA
from int4_qat.results.schema.divergence import Divergence
from int4_qat.results.schema.latency import Latency
from int4_qat.results.schema.memory import Memory
from int4_qat.results.schema.mmlu import Mmlu
from int4_qat.results.schema.parity import Parity
from int4_qat.results.schema.questions import Questions
from int4_qat.results.schema.serving import Serving
from int4_qat.results.schema.task import Task
from int4_qat.system.errors import InputError


class Samples(NamedTuple):
    """A table of samples that comes with a measurement, from which its metrics are recomputed."""

    file: str  # in the folder of a variant
    key: list[str]  # columns that name a unit; the first is its stratum
    columns: list[str]
    metrics: Callable[[str, Mapping[str, pd.DataFrame], dict], list[Metric]]  # from name, tables, base-bf16's content
    reported: Callable[[dict], list[float]]  # the same figures, as the measurement's file gives them
    interval: str = "ci95"  # key of the summary
    of_choices: bool = False  # answers to multiple-choice questions, with the choices' log-likelihoods


class Measurement(NamedTuple):
    """A measurement, which all or some of the variants have as a file."""

    name: str
    file: str  # in the folder of a variant
    schema: type  # of the file's content
    rule: str  # that writes the file
    in_bf16: str | None = None  # the rule for a variant in bf16, where it is another one
    setting: str | None = None  # key of `evaluation` in the config; null leaves the measurement out
    of: Callable[[str], bool] = lambda variant: True  # whether a variant has the measurement
    of_calibrated: bool = True  # whether variants calibrated on texts may have it
    engine: Callable[[dict], str] | None = None  # that serves a variant, by the settings of `evaluation`
    conditions: tuple[str, ...] = ()  # keys that must be equal in variants that are compared
    kept: tuple[str, ...] = ()  # keys that the summary repeats; with neither keys nor samples it shows nothing
    derived: Callable[[dict, dict], dict] | None = None  # figures from a variant's file and base-bf16's
    columns: Mapping[str, str] = {}  # of summary.csv, each with the summary's key that it shows
    printed: tuple[str, ...] = ()  # columns that the log also shows
    published_alone: bool = False  # whether publishing requires it only of the published variant
    samples: Samples | None = None
    group: str | None = None  # the summary's key under which several measurements of one kind are
    metric: str | None = None  # the chosen metric of an lm-eval task


def has_parity(variant: str) -> bool:
    """Return whether a variant is a quantized arm, so that what was trained can be compared with what is deployed."""
    return variants.is_quantized(variant) and variants.split(variant)[0] != variants.BASE


def sees_charts(variant: str) -> bool:
    """Return whether a variant is asked about charts, as base-bf16 and each quantized variant are."""
    return variant == variants.BASELINE or variants.is_quantized(variant)


def of_answers(file: str) -> Samples:
    """Return the table of the answers to multiple-choice questions."""
    return Samples(
        file=file,
        key=["subject", "index"],
        columns=["correct", "answer"],
        metrics=metrics.of_answers,
        reported=accuracy,
        interval="accuracy_ci95",
        of_choices=True,
    )


def accuracy(content: Mmlu | Questions) -> list[float]:
    """Return the figure that a set of questions reports."""
    return [content["accuracy"]]


def relaxed_accuracy(content: ChartQA) -> list[float]:
    """Return the figure that ChartQA reports for all questions."""
    return [content["relaxed_overall"]]


def value(content: dict) -> list[float]:
    """Return the figure that a task reports: its chosen metric."""
    return [content["value"]]


def of_texts(content: Divergence) -> list[float]:
    """Return the figures that all texts report, in the order of their metrics."""
    return [text[metric] for text in content["texts"].values() for metric in metric_names.OF_TEXTS]


ANSWERED = ("accuracy", "stderr", "questions", "prompts_over_max_length")
DIVERGENCE = Measurement(
    name="divergence",
    file="divergence.json",
    schema=Divergence,
    rule="evaluate_divergence",
    in_bf16="record_hidden_states",
    setting="divergence",
    conditions=("protocol", "versions", "device"),
    samples=Samples(
        file="divergence_samples.parquet",
        key=["text", "window"],
        columns=["tokens", "kl", "same_top1", "loss"],
        metrics=metrics.of_texts,
        reported=of_texts,
    ),
)
MMLU = Measurement(
    name="mmlu",
    file="mmlu.json",
    schema=Mmlu,
    rule="gather_mmlu",
    setting="mmlu",
    conditions=("settings", "versions"),
    kept=(*ANSWERED, "subjects"),
    columns={"accuracy": "accuracy", "stderr": "stderr"},
    samples=of_answers("mmlu_samples.parquet"),
)
OTHERS = (
    Measurement(
        name="chartqa",
        file="chartqa.json",
        schema=ChartQA,
        rule="evaluate_chartqa",
        setting="chartqa",
        of=sees_charts,
        conditions=("versions",),
        kept=("relaxed_overall", "human", "augmented", "stderr", "questions", "dequantized"),
        samples=Samples(
            file="chartqa_samples.parquet",
            key=["type", "index"],
            columns=["correct"],
            metrics=metrics.of_answers,
            reported=relaxed_accuracy,
        ),
        columns={"chartqa": "relaxed_overall"},
        printed=("chartqa",),
    ),
    Measurement(
        name="memory",
        file="memory.json",
        schema=Memory,
        rule="measure_memory",
        setting="memory",
        conditions=("device", "measure", "dtype", "generated_tokens"),
        kept=("peak_gb", "checkpoint_gb", "weights_gb", "predicted", "dequantized", "measure"),
        derived=against_baseline.memory_reductions,
        columns={
            "peak_gb": "peak_gb",
            "peak_reduction": "reduction",
            "checkpoint_gb": "checkpoint_gb",
            "checkpoint_reduction": "checkpoint_reduction",
        },
        printed=("peak_gb", "checkpoint_gb"),
    ),
    Measurement(
        name="latency",
        file="latency.json",
        schema=Latency,
        rule="measure_latency",
        setting="latency",
        engine=lambda evaluation: evaluation["latency"]["engine"],
        conditions=("device", "engine", "engine_version", "vllm_arguments", "gpus", "dtype", "input_len", "output_len"),
        kept=("engine", "output_len", "dequantized", *against_baseline.TIMES),
        derived=against_baseline.speedups,
        columns={
            "latency_s": "mean_s",
            "speedup": "speedup",
            "speedup_std": "speedup_std",
            "bandwidth_limit_percent": "bandwidth_limit_percent",
        },
        printed=("latency_s",),
    ),
    Measurement(
        name="parity",
        file="parity.json",
        schema=Parity,
        rule="check_parity",
        of=has_parity,
        of_calibrated=False,  # their codes do not follow from base model and adapter alone
        published_alone=True,
        kept=("weights_that_differ", "relative_logit_difference"),
        columns={"relative_logit_difference": "relative_logit_difference"},
        printed=("relative_logit_difference",),
    ),
    Measurement(
        name="serving",
        file="serving.json",
        schema=Serving,
        rule="check_serving",
        setting="serving",
        of=variants.is_quantized,
        engine=lambda evaluation: quantizations.VLLM,
        published_alone=True,
    ),
)


def task(name: str, metric: str) -> Measurement:
    """Return the measurement of one of lm-eval's tasks."""
    return Measurement(
        name=name,
        file=f"tasks/{name}.json",
        schema=Task,
        rule="evaluate_task",
        conditions=("settings", "versions"),
        kept=("metric", "value", "stderr", "higher_is_better"),
        columns={name: "value", f"{name}_stderr": "stderr"},
        printed=(name,),
        samples=Samples(
            file=f"tasks/{name}_samples.parquet",
            key=["member", "document"],
            columns=["metric", "value", "weight"],
            metrics=metrics.of_task,
            reported=value,
        ),
        group="tasks",
        metric=metric,
    )


def questions(name: str) -> Measurement:
    """Return the measurement of a set of the user's own questions."""
    return Measurement(
        name=name,
        file=f"questions/{name}.json",
        schema=Questions,
        rule="evaluate_questions",
        conditions=("settings", "versions"),
        kept=(*ANSWERED, "groups"),
        columns={name: "accuracy", f"{name}_stderr": "stderr"},
        printed=(name,),
        samples=of_answers(f"questions/{name}_samples.parquet"),
        group="questions",
    )


def table(question_sets: Iterable[str], tasks: Mapping[str, str]) -> tuple[Measurement, ...]:
    """Return all measurements, with the given sets of the user's own questions and lm-eval tasks by their metrics."""
    own = [questions(name) for name in question_sets]
    return (DIVERGENCE, MMLU, *own, *(task(name, metric) for name, metric in tasks.items()), *OTHERS)


def asked(settings: dict) -> dict[str, list[Measurement]]:
    """Return the measurements of each variant, from a config or from the settings of one of its models."""
    evaluation = settings["evaluation"]
    if missing := sorted({"divergence", "questions"} - evaluation.keys()):
        raise InputError(f"evaluation: expected the key {missing[0]}, found {', '.join(evaluation)}; re-run")
    tasks = {entry["task"]: entry["metric"] for entry in evaluation["tasks"]}
    own = [entry["name"] for entry in evaluation["questions"]]
    wanted = [one for one in table(own, tasks) if one.setting is None or evaluation.get(one.setting)]
    return {
        variant: [
            one
            for one in wanted
            if one.of(variant)
            and (one.of_calibrated or not calibrated_bases.is_calibrated(variant, settings))
            and why_not_served(one, variant, settings) is None
        ]
        for variant in settings["variants"]
    }


def why_not_served(measurement: Measurement, variant: str, settings: dict) -> str | None:
    """Return why no engine serves a variant for a measurement, or None if one does or none is needed."""
    if measurement.engine is None or not variants.is_quantized(variant):
        return None
    engine = measurement.engine(settings["evaluation"])
    return quantizations.why_not_served(calibrated_bases.entry_of(variant, settings), engine)


def not_served(settings: dict) -> dict[str, dict[str, str]]:
    """Return why measurements are missing for want of a format that an engine serves, by variant and name."""
    served = [one for one in OTHERS if one.engine and settings["evaluation"][one.setting]]
    reasons = {
        variant: {one.name: why_not_served(one, variant, settings) for one in served if one.of(variant)}
        for variant in settings["variants"]
    }
    return {
        variant: found
        for variant, each in reasons.items()
        if (found := {name: reason for name, reason in each.items() if reason})
    }


def summarized(measured: Mapping[str, list[Measurement]]) -> dict[str, list[Measurement]]:
    """Return the given measurements of variants that the summary shows."""
    return {variant: [one for one in found if one.kept or one.samples] for variant, found in measured.items()}


def to_publish(measured: Mapping[str, list[Measurement]], published: str) -> dict[str, list[Measurement]]:
    """Return the given measurements of variants that are required to publish the given variant."""
    return {
        variant: [one for one in found if variant == published or not one.published_alone]
        for variant, found in measured.items()
    }


def to_json(measured: Mapping[str, list[Measurement]]) -> str:
    """Return the names of measurements by variant, as JSON."""
    return json.dumps({variant: [one.name for one in found] for variant, found in measured.items()})


def of_names(
    names: Mapping[str, list[str]], question_sets: Iterable[str], tasks: Mapping[str, str]
) -> dict[str, list[Measurement]]:
    """Return the measurements of each variant, given their names; raise InputError for an unknown name."""
    known = {one.name: one for one in table(question_sets, tasks)}
    for name in (name for found in names.values() for name in found if name not in known):
        raise InputError(f"--measured: expected one of {', '.join(known)}, found '{name}'")
    return {variant: [known[name] for name in found] for variant, found in names.items()}
