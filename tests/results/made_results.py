"""Write results of variants without running the workflow that would produce them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from int4_qat.results.schema.divergence import Divergence, Text
from int4_qat.results.schema.latency import Batch, Latency
from int4_qat.results.schema.memory import Memory, Prediction
from int4_qat.results.schema.mmlu import Mmlu, Scores, Subject
from int4_qat.results.schema.parity import Parity
from int4_qat.results.schema.serving import Answer, FirstToken, Load, Serving
from int4_qat.results.schema.task import Kind, Metric, Task

QUESTIONS, WINDOWS = 1000, 40


def write_variant(folder: Path, right: float, generator: np.random.Generator) -> None:
    """Write the results that every variant has; right is its share of correct answers."""
    folder.mkdir()
    write_answers(folder, generator.permutation(np.arange(QUESTIONS) < QUESTIONS * right), generator)
    write_windows(folder, windows_of(folder.name, 1 - right, generator))
    in_bf16 = folder.name.endswith("bf16")
    for name, content in {"memory": memory(in_bf16), "latency": latency(in_bf16)}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def write_windows(folder: Path, windows: pd.DataFrame) -> None:
    """Write the divergence of a variant: its windows and their summary."""
    windows.to_parquet(folder / "divergence_samples.parquet")
    (folder / "divergence.json").write_text(json.dumps(divergence(windows)))


def write_answers(folder: Path, correct: np.ndarray, generator: np.random.Generator) -> None:
    """Write the MMLU answers of a variant and its score."""
    table = pd.DataFrame({"subject": "anatomy", "index": range(QUESTIONS), "correct": correct, "answer": 0})
    table[[f"log_likelihood_{letter}" for letter in "ABCD"]] = generator.normal(size=(QUESTIONS, 4))
    table.to_parquet(folder / "mmlu_samples.parquet")
    (folder / "mmlu.json").write_text(json.dumps(mmlu(float(correct.mean()))))


def windows_of(name: str, kl: float | np.ndarray, generator: np.random.Generator) -> pd.DataFrame:
    """Return the windows of a text; kl is the approximate divergence per token, one value or one per window.

    The divergence of base-bf16 is zero, whatever kl is.
    """
    losses = np.random.default_rng(1).uniform(200, 400, WINDOWS)  # base-bf16's, the same for all variants
    kl = np.zeros(WINDOWS) if name == "base-bf16" else 100 * kl * generator.uniform(0.9, 1.1, WINDOWS)
    return pd.DataFrame(
        {
            "text": "wikitext",
            "window": range(WINDOWS),
            "tokens": 100,
            "kl": kl,
            "same_top1": 100 - kl,
            "loss": losses + kl,
            "base_loss": losses,
            "kl_from_own_bf16": np.nan if name.endswith("bf16") else kl / 2,
        }
    )


def divergence(windows: pd.DataFrame) -> Divergence:
    tokens, sums = int(windows["tokens"].sum()), windows.sum(numeric_only=True)
    own = windows["kl_from_own_bf16"]
    text = Text(
        tokens=tokens,
        windows=len(windows),
        kl=sums["kl"] / tokens,
        kl_from_own_bf16=None if own.isna().all() else own.sum() / tokens,
        top1_agreement=sums["same_top1"] / tokens,
        perplexity=float(np.exp(sums["loss"] / tokens)),
        perplexity_of_base=float(np.exp(sums["base_loss"] / tokens)),
    )
    return Divergence(
        texts={"wikitext": text},
        protocol={"wikitext": {"context": 101, "limit": None, "bos": "<bos>", "dtype": "bfloat16", "sha256": ""}},
        same_head=True,
        versions={"torch": "2.11.0"},
        int4_path=None,
        device="NVIDIA H100 80GB HBM3",
    )


def mmlu(right: float) -> Mmlu:
    scores = Scores(accuracy=right, stderr=0.01, questions=QUESTIONS, prompts_over_max_length=0)
    return Mmlu(
        **scores,
        subjects=1,
        by_category={"stem": scores},
        by_subject={"anatomy": Subject(**scores, category="stem", task_version="1.0")},
        stock_check=None,
        settings={
            "num_fewshot": 0,
            "batch_size": 8,
            "limit": None,
            "dtype": "bfloat16",
            "softmax_dtype": "float32",
        },
        versions={"torch": "2.11.0", "torchao": "0.17.0", "transformers": "5.0.0", "lm-eval": "0.4.9"},
    )


def memory(in_bf16: bool) -> Memory:
    return Memory(
        peak_gb=24.5 if in_bf16 else 8.34,
        measure="max_memory_reserved",
        weights_gb=1,
        checkpoint_gb=1,
        predicted=Prediction(weights_gb={}, cache_gb=0.1, total_gb=0.1),
        dequantized=False,
        int4_path=None,
        generated_tokens=128,
        dtype="bfloat16",
        device="NVIDIA H100 80GB HBM3",
    )


def latency(in_bf16: bool) -> Latency:
    batch = Batch(
        batch_size=1,
        mean_s=3.73 if in_bf16 else 2.16,
        repeat_means_s=[],
        std_s=0.1,
        percentiles_s={"10": 2, "90": 4},
        latencies_s=[],
        tokens_per_s=1,
        bandwidth_limit_percent=50.0,
        cuda_graph=True,
    )
    return Latency(
        **batch,
        batches=[batch, batch | {"batch_size": 256, "mean_s": 16.0, "std_s": None}],
        engine="transformers",
        engine_version="5.17.0",
        vllm_arguments=[],
        gpus=1,
        input_len=256,
        output_len=256,
        warmup=10,
        iterations=30,
        repeats=3,
        dtype="bfloat16",
        dequantized=False,
        int4_path=None,
        device="NVIDIA H100 80GB HBM3",
    )


def parity() -> Parity:
    return Parity(
        weights_that_differ=0,
        relative_logit_difference=0.02,
        scheme={},
        target="base",
        texts=4,
        tokens=184,
        dtype="float32",
        device="cpu",
    )


def write_task(folder: Path, name: str, metrics: dict[str, tuple[Kind, np.ndarray, np.ndarray]]) -> None:
    """Write the lm-eval results of a task; metrics maps each name to its kind and its documents' values and weights."""
    rows, found = [], {}
    for metric, (kind, values, weights) in metrics.items():
        found[metric] = Metric(**kind, value=figure(kind, values, weights), stderr=0.02)
        for document, (value, weight) in enumerate(zip(values, weights, strict=True)):
            rows.append({"member": name, "document": document, "metric": metric, "value": value, "weight": weight})
    (folder / "tasks").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "tasks" / f"{name}_samples.parquet")
    (folder / "tasks" / f"{name}.json").write_text(json.dumps(task(found)))


def figure(kind: Kind, values: np.ndarray, weights: np.ndarray) -> float:
    """Return a task's figure by the formulas of lm-eval's api/metrics.py."""
    mean = values.sum() / weights.sum()
    return float(
        {"mean": mean, "weighted_perplexity": np.exp(-mean), "bits_per_byte": -mean / np.log(2)}[kind["aggregation"]]
    )


def task(metrics: dict[str, Metric]) -> Task:
    return Task(
        metrics=metrics,
        members={},
        groups={},
        documents={},
        questions=10,
        stock_check=None,
        prompts_over_max_length=0,
        settings={},
        task_version=None,
        versions={},
    )


def serving() -> Serving:
    load = Load(
        requests=1, seconds=2.0, time_to_first_token_s=FirstToken(mean=0.1, most=0.2), tokens=64, tokens_per_s=32.0
    )
    return Serving(
        answer=Answer(content="Yes.", finish_reason="stop", prompt_tokens=9, completion_tokens=2),
        likeliest_token="Yes",
        likeliest_tokens_in_transformers=["Yes", "No"],
        load=[load],
        startup_s=40.0,
        engine="vllm",
        engine_version="0.32.0",
        vllm_arguments=["--compilation-config", "{}"],
        gpus=1,
        max_tokens=64,
        dtype="bfloat16",
        kernel="MacheteLinearKernel",
        device="NVIDIA H100 80GB HBM3",
    )
