"""What is measured of a variant: in which file it stands, which variants have it, what of it the summary shows.

A further measurement is a program with its rule, a class of what its file holds, an entry here, a section of the card.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from int4_qat.config import variants
from int4_qat.results.schema.chartqa import ChartQA
from int4_qat.results.schema.latency import Batch, Latency
from int4_qat.results.schema.memory import Memory
from int4_qat.results.schema.mmlu import Mmlu
from int4_qat.results.schema.parity import Parity
from int4_qat.results.schema.serving import Serving
from int4_qat.results.schema.task import Task
from int4_qat.system import files
from int4_qat.system.errors import InputError

TIMES = ("batch_size", "mean_s", "std_s", "percentiles_s", "bandwidth_limit_percent")  # of a batch size


class Measurement(NamedTuple):
    """A file that each of some variants has."""

    name: str
    file: str  # in the folder of a variant
    schema: type  # what it holds
    rule: str  # that writes it
    setting: str | None = None  # key of `evaluation` in the config; null leaves the measurement out
    of: Callable[[str], bool] = lambda variant: True  # whether a variant has it
    conditions: tuple[str, ...] = ()  # keys that must hold the same in two variants that are compared
    kept: tuple[str, ...] = ()  # keys that the summary repeats; it shows nothing of a measurement without any
    derived: Callable[[dict, dict], dict] | None = None  # what follows from a variant's file and base-bf16's
    columns: Mapping[str, str] = {}  # of summary.csv, each with the key of the summary that it shows
    printed: tuple[str, ...] = ()  # columns that the log shows as well
    published_alone: bool = False  # publishing needs it of the published variant alone, not of every one
    samples: str | None = None  # a table beside the file, a row a question
    metric: str | None = None  # of a task of lm-eval's: the one that counts


def has_parity(variant: str) -> bool:
    """Return whether a variant is an arm's, quantized: what was trained can be held against what is deployed."""
    return variants.is_quantized(variant) and variants.split(variant)[0] != variants.BASE


def sees_charts(variant: str) -> bool:
    """Return whether a variant is asked about charts: the model before, and each quantized one."""
    return variant == variants.BASELINE or variants.is_quantized(variant)


def memory_reductions(memory: Memory, baseline: Memory) -> dict:
    """Return the shares of the baseline's memory and of its size on disk that a variant does without."""
    return {
        "reduction": 1 - memory["peak_gb"] / baseline["peak_gb"],
        "checkpoint_reduction": 1 - memory["checkpoint_gb"] / baseline["checkpoint_gb"],
    }


def speedups(latency: Latency, baseline: Latency) -> dict:
    """Return the speedup of the first batch size, and the times and speedups of all."""
    pairs = zip(latency["batches"], baseline["batches"], strict=True)
    batches = [{key: batch[key] for key in TIMES} | speedup(batch, plain) for batch, plain in pairs]
    return {"speedup": batches[0]["speedup"], "speedup_std": batches[0]["speedup_std"], "batches": batches}


def speedup(batch: Batch, baseline: Batch) -> dict:
    """Return the speedup of one batch size; the spreads of both measurements add up to its own."""
    ratio = baseline["mean_s"] / batch["mean_s"]
    spreads = [None if each["std_s"] is None else each["std_s"] / each["mean_s"] for each in (batch, baseline)]
    return {"speedup": ratio, "speedup_std": None if None in spreads else ratio * math.hypot(*spreads)}


MMLU = Measurement(
    name="mmlu",
    file="mmlu.json",
    schema=Mmlu,
    rule="gather_mmlu",
    setting="mmlu",
    conditions=("settings", "versions"),
    kept=("accuracy", "stderr", "questions", "prompts_over_max_length", "subjects"),
    samples="mmlu_samples.parquet",
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
        derived=memory_reductions,
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
        conditions=("device", "engine", "engine_version", "vllm_arguments", "dtype", "input_len", "output_len"),
        kept=("engine", "output_len", "dequantized", *TIMES),
        derived=speedups,
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
        kept=("metric", "value", "stderr"),
        columns={name: "value", f"{name}_stderr": "stderr"},
        printed=(name,),
        metric=metric,
    )


def table(tasks: Mapping[str, str]) -> tuple[Measurement, ...]:
    """Return all that can be measured, with some tasks of lm-eval's, each with the metric that counts."""
    return (MMLU, *(task(name, metric) for name, metric in tasks.items()), *OTHERS)


def asked(settings: dict) -> dict[str, list[Measurement]]:
    """Return what is measured of each variant, by a config or by the settings of one of its models."""
    evaluation = settings["evaluation"]
    tasks = {entry["task"]: entry["metric"] for entry in evaluation["tasks"]}
    wanted = [one for one in table(tasks) if one.setting is None or evaluation.get(one.setting)]
    return {variant: [one for one in wanted if one.of(variant)] for variant in settings["variants"]}


def summarized(measured: Mapping[str, list[Measurement]]) -> dict[str, list[Measurement]]:
    """Return those of some measurements of variants that the summary shows."""
    return {variant: [one for one in found if one.kept] for variant, found in measured.items()}


def to_publish(measured: Mapping[str, list[Measurement]], published: str) -> dict[str, list[Measurement]]:
    """Return those of some measurements of variants without which one of the variants is not published."""
    return {
        variant: [one for one in found if variant == published or not one.published_alone]
        for variant, found in measured.items()
    }


def paths(measured: Mapping[str, list[Measurement]]) -> list[str]:
    """Return the files of measurements of variants, in the folder of the model, tables of samples among them."""
    every = [(variant, one) for variant, found in measured.items() for one in found]
    return [f"{variant}/{file}" for variant, one in every for file in (one.file, one.samples) if file]


def read(folder: Path, measurement: Measurement) -> dict:
    """Return a measurement from the folder of a variant; raise InputError if there is none, or a key is missing."""
    path = folder / measurement.file
    content = files.read_json(path)
    for key in sorted(measurement.schema.__required_keys__ - content.keys()):
        raise InputError(f"{path}: expected the key {key}, found {', '.join(content)}")
    return content if measurement.metric is None else content | that_counts(path, content, measurement.metric)


def that_counts(path: Path, content: Task, metric: str) -> dict:
    """Return the metric of a task that counts; raise InputError if lm-eval reports none of that name."""
    metrics = content["metrics"]
    if metric not in metrics:
        raise InputError(f"evaluation.tasks: {path} has no metric '{metric}'; expected {' or '.join(metrics)}")
    return {"metric": metric} | metrics[metric]


def part(row: dict, measurement: Measurement) -> dict | None:
    """Return what a row of the summary holds of a measurement, or None if the variant was not measured so."""
    return (row["tasks"] if measurement.metric else row).get(measurement.name)


def to_json(measured: Mapping[str, list[Measurement]]) -> str:
    """Return the names of measurements, variant by variant."""
    return json.dumps({variant: [one.name for one in found] for variant, found in measured.items()})


def of_names(names: Mapping[str, list[str]], tasks: Mapping[str, str]) -> dict[str, list[Measurement]]:
    """Return measurements by their names, variant by variant; raise InputError if there is none of a name."""
    known = {one.name: one for one in table(tasks)}
    for name in (name for found in names.values() for name in found if name not in known):
        raise InputError(f"--measured: expected one of {', '.join(known)}, found '{name}'")
    return {variant: [known[name] for name in found] for variant, found in names.items()}
