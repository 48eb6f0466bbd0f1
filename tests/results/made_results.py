"""Write results of variants, without the run that would make them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from int4_qat.results.schema.latency import Batch, Latency
from int4_qat.results.schema.memory import Memory, Prediction
from int4_qat.results.schema.mmlu import Mmlu, Scores, Subject
from int4_qat.results.schema.parity import Parity
from int4_qat.results.schema.serving import Answer, FirstToken, Load, Serving
from int4_qat.results.schema.task import Metric, Task

QUESTIONS = 1000


def write_variant(folder: Path, right: float, generator: np.random.Generator) -> None:
    """Write what every variant has; right is the share of its right answers."""
    folder.mkdir()
    correct = generator.permutation(np.arange(QUESTIONS) < QUESTIONS * right)
    table = pd.DataFrame({"subject": "anatomy", "index": range(QUESTIONS), "correct": correct, "answer": 0})
    table[[f"log_likelihood_{letter}" for letter in "ABCD"]] = generator.normal(size=(QUESTIONS, 4))
    table.to_parquet(folder / "mmlu_samples.parquet")
    in_bf16 = folder.name.endswith("bf16")
    for name, content in {"mmlu": mmlu(right), "memory": memory(in_bf16), "latency": latency(in_bf16)}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def mmlu(right: float) -> Mmlu:
    scores = Scores(accuracy=right, stderr=0.01, questions=QUESTIONS, prompts_over_max_length=0)
    return Mmlu(
        **scores,
        subjects=1,
        by_category={"stem": scores},
        by_subject={"anatomy": Subject(**scores, category="stem", task_version="1.0")},
        stock_check=None,
        settings={"num_fewshot": 0},
        versions={"torch": "2.11.0"},
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
    )
    return Latency(
        **batch,
        batches=[batch, batch | {"batch_size": 256, "mean_s": 16.0, "std_s": None}],
        engine="vllm",
        engine_version="0.20.0",
        vllm_arguments=[],
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


def task(metrics: dict[str, Metric]) -> Task:
    return Task(
        metrics=metrics,
        members={},
        questions=10,
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
        engine_version="0.25.1",
        vllm_arguments=["--compilation-config", "{}"],
        max_tokens=64,
        dtype="bfloat16",
        dequantized=False,
        device="NVIDIA H100 80GB HBM3",
    )
