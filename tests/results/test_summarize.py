"""Test that the published card's numbers give its own table, and that missing or mismatched results are errors."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest

import made_results
from int4_qat.results import against_baseline, measurements, metrics, seeds, statistics, summary
from int4_qat.results.units import Asked
from programs import VARIANTS, run_script

CARD = {
    # variant: MMLU accuracy and normalized degradation, as the card prints them
    "base-bf16": (71.51, 0.0),
    "base-int4": (69.48, -1.0),
    "lora-bf16": (71.55, 0.02),
    "lora-int4": (69.58, -0.95),
    "qat-int4": (70.18, -0.655),
}
ARMS = {
    f"{name}_{seed}": {"quantization": quantization, "seed": seed, "r": 8}
    for name, quantization in {"lora": None, "qat": "int4"}.items()
    for seed in (1, 2, 3)
}


def test_the_cards_normalized_degradation():
    for accuracy, printed in CARD.values():
        assert statistics.degradation(accuracy, 71.51, 69.48) == pytest.approx(printed, abs=0.002)


def measured(names, tasks=(), questions=(), mmlu=("mmlu",)):
    """Return the names of the measurements of each of the given variants."""
    own = ["divergence", *mmlu, *questions, *(task.partition("=")[0] for task in tasks), "memory", "latency"]
    return {name: [*own, *(["parity"] if measurements.has_parity(name) else [])] for name in names}


def run(
    results,
    names=VARIANTS,
    tasks=(),
    references=None,
    headline="mmlu",
    questions=(),
    mmlu=("mmlu",),
    calibrated=None,
):
    arms = {"qat": {"quantization": "int4", "seed": 1}}
    references = references or dict.fromkeys(names, "base-int4")
    return run_script(
        "summarize",
        *("--model", "m", "--results", results, "--measured", json.dumps(measured(names, tasks, questions, mmlu))),
        *("--arms", json.dumps(arms), "--references", json.dumps(references)),
        *("--calibrated", json.dumps(calibrated or {})),
        *("--data-reports", results / "report.json"),
        *("--contamination", results / "contamination.json", "--tasks", *tasks, "--headline", headline),
        *("--questions", *questions),
        *("--json", results / "summary.json", "--csv", results / "summary.csv"),
    )


def test_prompts_that_were_cut_are_in_the_summary(results):
    path = results / "qat-int4" / "mmlu.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts_over_max_length": 7}))
    assert run(results).returncode == 0
    rows = json.loads((results / "summary.json").read_text())["variants"]
    assert [row["mmlu"]["prompts_over_max_length"] for row in rows] == [0, 0, 7]


def test_columns_of_the_three_tables(results):
    assert run(results).returncode == 0
    rows = {row["name"]: row for row in json.loads((results / "summary.json").read_text())["variants"]}
    qat = rows["qat-int4"]
    assert qat["recovered"] == pytest.approx(0.5)
    low, high = qat["recovered_ci95"]
    assert low < 0.5 < high
    assert qat["memory"]["reduction"] == pytest.approx(0.66, abs=0.005)  # the card: 66%
    assert qat["latency"]["speedup"] == pytest.approx(1.73, abs=0.005)  # the card: 1.73x
    assert qat["latency"]["speedup_std"] == pytest.approx(3.73 / 2.16 * np.hypot(0.1 / 3.73, 0.1 / 2.16))
    assert [batch["speedup_std"] is None for batch in qat["latency"]["batches"]] == [False, True]
    table = pd.read_csv(results / "summary.csv")
    assert table["variant"].tolist() == VARIANTS
    assert (table["bandwidth_limit_percent"].iloc[2], table["speedup_batch_256"].iloc[2]) == (50.0, 1.0)
    assert qat["by_category"]["stem"]["recovered_ci95"] == [low, high]


def test_pairs_are_resolved_or_said_not_to_be(results):
    base = pd.read_parquet(results / "base-int4" / "mmlu_samples.parquet")
    made_results.write_answers(
        results / "qat-int4", (base["correct"] ^ (base["index"] < 2)).to_numpy(), np.random.default_rng(0)
    )
    result = run(results)
    pairs = [pair for pair in json.loads((results / "summary.json").read_text())["comparisons"] if "mcnemar_p" in pair]
    assert {(pair["variant"], pair["reference"]): pair["resolved"] for pair in pairs} == {
        ("base-int4", "base-bf16"): True,
        ("qat-int4", "base-int4"): False,
        ("qat-int4", "base-bf16"): True,
    }
    assert "not resolved" in next(line for line in result.stdout.splitlines() if "qat-int4 base-int4" in line)


def test_int4_that_costs_nothing_has_no_ratio(results):
    for name, file in itertools.product(VARIANTS[1:], ["mmlu.json", "mmlu_samples.parquet"]):
        shutil.copy(results / "base-bf16" / file, results / name)
    result = run(results)
    qat = json.loads((results / "summary.json").read_text())["variants"][-1]
    assert (qat["recovered"], qat["recovered_ci95"], qat["recovered_resolved"]) == (None, None, False)
    assert pd.read_csv(results / "summary.csv")["recovered"].isna().all()
    lines = result.stdout.splitlines()
    assert "not resolved" in next(line for line in lines[lines.index("variants") :] if "qat-int4" in line)


def test_pairs_of_interest():
    names = ["base-bf16", "base-int4", "lora_1-bf16", "lora_1-int4", "lora_2-int4", "qat_1-int4"]
    assert summary.pairs(names, ARMS, dict.fromkeys(names, "base-int4")) == [
        ("base-int4", "base-bf16"),
        ("lora_1-int4", "base-int4"),
        ("lora_1-int4", "base-bf16"),
        ("lora_1-int4", "lora_1-bf16"),
        ("lora_2-int4", "base-int4"),
        ("lora_2-int4", "base-bf16"),
        ("qat_1-int4", "base-int4"),
        ("qat_1-int4", "base-bf16"),
        ("qat_1-int4", "lora_1-int4"),
    ]


def test_each_quantization_has_its_own_reference():
    names = ["base-bf16", "base-int4", "base-w4a16", "lora-int4", "lora-w4a16", "qat-w4a16"]
    references = dict.fromkeys(names, "base-int4") | dict.fromkeys([names[2], *names[4:]], "base-w4a16")
    arms = {"lora": {"quantization": None, "seed": 1}, "qat": {"quantization": "w4a16", "seed": 1}}
    assert summary.pairs(names, arms, references) == [
        ("base-int4", "base-bf16"),
        ("base-w4a16", "base-bf16"),
        ("lora-int4", "base-int4"),
        ("lora-int4", "base-bf16"),
        ("lora-w4a16", "base-w4a16"),
        ("lora-w4a16", "base-bf16"),
        ("qat-w4a16", "base-w4a16"),
        ("qat-w4a16", "base-bf16"),
        ("qat-w4a16", "lora-w4a16"),
    ]


def test_what_is_recovered_is_against_the_reference(results):
    """Recovery is relative to the reference: base-w4a16 costs twice what base-int4 does; qat-w4a16 equals qat-int4."""
    made_results.write_variant(results / "base-w4a16", 0.5, np.random.default_rng(1))
    shutil.copytree(results / "qat-int4", results / "qat-w4a16")
    names = [*VARIANTS, "base-w4a16", "qat-w4a16"]
    references = {name: "base-w4a16" if name.endswith("w4a16") else "base-int4" for name in names}
    assert run(results, names, references=references).returncode == 0
    rows = {row["name"]: row for row in json.loads((results / "summary.json").read_text())["variants"]}
    assert {name: row["quantized_baseline"] for name, row in rows.items()} == references
    assert rows["qat-int4"]["recovered"] == pytest.approx(0.5)
    assert rows["qat-w4a16"]["recovered"] == pytest.approx(0.75)
    assert rows["qat-w4a16"]["by_category"]["stem"]["recovered"] == pytest.approx(0.75)
    assert rows["base-w4a16"]["normalized_degradation"] == -1


def test_arms_that_differ_in_their_seed_are_one_group():
    names = ["base-bf16", "base-int4", *(f"{arm}-int4" for arm in ARMS)]
    accuracies = [0.7, 0.5, 0.51, 0.52, 0.53, 0.61, 0.62, 0.63]
    references = dict.fromkeys(names, "base-int4")
    compared = [
        {"variant": name, "reference": reference, "difference": 0.01}
        for name, reference in summary.pairs(names, ARMS, references)
    ]
    resampled = pd.DataFrame(np.random.default_rng(0).normal(accuracies, 0.004, (1000, 8)), columns=names)
    metric = metrics.Metric("mmlu", metrics.SHARE, pd.DataFrame(columns=names), {}, True)
    scores = metrics.Scores(dict(zip(names, accuracies, strict=True)), resampled)
    asked = Asked(measurements.MMLU, {}, metric, scores)
    found = seeds.over_seeds(asked, references, compared, ARMS)
    lora, qat = ([f"{name}_{seed}-int4" for seed in (1, 2, 3)] for name in ("lora", "qat"))
    assert [group["variants"] for group in found["headline"]] == [lora, qat]
    assert found["headline"][0]["sd_between_seeds"] == pytest.approx(0.01)
    assert found["headline"][0]["recovered"] == pytest.approx(0.1)
    low, high = found["headline"][1]["recovered_ci95"]
    assert low < 0.48 < 0.72 < high  # Student's t of three seeds alone: 0.6 +- 0.12
    assert (qat, lora) in [(group["variants"], group["references"]) for group in found["difference"]]
    assert len(found["difference"]) == 5


@pytest.mark.parametrize("name", ["mmlu.json", "mmlu_samples.parquet", "memory.json", "latency.json"])
def test_a_missing_result_is_an_error(results, name):
    (results / "qat-int4" / name).unlink()
    result = run(results)
    assert result.returncode == 1
    assert name in result.stderr
    assert not (results / "summary.json").exists()


def test_floats_in_place_of_int4_have_no_speedup(results):
    path = results / "qat-int4" / "latency.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dequantized": True}))
    result = run(results)
    assert result.returncode == 0
    latencies = {row["name"]: row["latency"] for row in json.loads((results / "summary.json").read_text())["variants"]}
    qat = latencies["qat-int4"]
    assert (qat["speedup"], qat["no_speedup"]) == (None, "the quantized weights were converted to floats")
    assert [batch["speedup"] for batch in qat["batches"]] == [None, None]
    assert latencies["base-int4"]["speedup"] == pytest.approx(1.73, abs=0.005)
    table = pd.read_csv(results / "summary.csv").set_index("variant")
    assert table.loc["qat-int4"].filter(like="speedup").isna().all()


def test_a_cuda_graph_for_one_of_two_gives_no_speedup(results):
    path = results / "qat-int4" / "latency.json"
    latency = json.loads(path.read_text())
    latency["batches"][1]["cuda_graph"] = not latency["batches"][1]["cuda_graph"]
    path.write_text(json.dumps(latency))
    assert run(results).returncode == 0
    latencies = {row["name"]: row["latency"] for row in json.loads((results / "summary.json").read_text())["variants"]}
    assert latencies["qat-int4"]["speedup"] is None
    assert latencies["qat-int4"]["no_speedup"] == against_baseline.ONE_GRAPH
    assert latencies["base-int4"]["no_speedup"] is None


def test_samples_of_another_run_are_an_error(results):
    path = results / "qat-int4" / "mmlu_samples.parquet"
    table = pd.read_parquet(path)
    table.iloc[:-1].to_parquet(path)
    assert "qat-int4: expected the questions of mmlu that base-bf16 was asked, found others" in run(results).stderr
    table.assign(correct=False).to_parquet(path)
    assert f"{path}: mmlu: expected 0.8, as in mmlu.json, found 0.0" in run(results).stderr


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("latency", "device", "NVIDIA A100"), ("memory", "dtype", "float32"), ("mmlu", "versions", {"torch": "2.12.0"})],
)
def test_what_was_measured_otherwise_is_not_compared(results, kind, key, value):
    path = results / "qat-int4" / f"{kind}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    result = run(results)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {path}: {key}: expected ")
