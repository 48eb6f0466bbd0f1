"""Test that every metric has an interval and a recovered share, computed from its units, and can be the headline."""

import json

import numpy as np
import pandas as pd
import pytest

import made_results
from int4_qat.config import metric_names
from programs import VARIANTS
from test_summarize import run


def divergence_of(results):
    rows = json.loads((results / "summary.json").read_text())["variants"]
    return {row["name"]: row["divergence"]["wikitext"] for row in rows}


def test_the_divergence_is_that_of_the_windows(results):
    assert run(results).returncode == 0
    found = divergence_of(results)
    base = found["base-bf16"]
    assert base["kl"] == {"value": 0, "ci95": [0, 0]}
    assert base["top1_agreement"]["value"] == base["perplexity_ratio"]["value"] == 1
    assert base["kl_from_own_bf16"] is None
    windows = pd.read_parquet(results / "qat-int4" / "divergence_samples.parquet")
    qat = found["qat-int4"]
    assert qat["kl"]["value"] == pytest.approx(windows["kl"].sum() / 4000)
    # The windows have the same length, so this is the normal interval of their mean.
    half = 1.96 * windows["kl"].std() / 100 / np.sqrt(len(windows))
    assert qat["kl"]["ci95"] == pytest.approx([qat["kl"]["value"] - half, qat["kl"]["value"] + half], rel=0.005)
    assert qat["perplexity"]["value"] == pytest.approx(np.exp(windows["loss"].mean() / 100))
    assert qat["perplexity_ratio"]["value"] == pytest.approx(np.exp(qat["kl"]["value"]))  # as made_results sets it
    assert qat["kl_from_own_bf16"]["value"] == pytest.approx(qat["kl"]["value"] / 2)


def test_what_was_recovered_of_the_divergence(results):
    assert run(results).returncode == 0
    found = divergence_of(results)
    kl = {name: text["kl"]["value"] for name, text in found.items()}
    loss = {name: np.log(text["perplexity"]["value"]) for name, text in found.items()}
    recovered = found["qat-int4"]["recovered"]
    assert recovered["kl"]["value"] == pytest.approx(1 - kl["qat-int4"] / kl["base-int4"])
    expected = (loss["base-int4"] - loss["qat-int4"]) / (loss["base-int4"] - loss["base-bf16"])
    assert recovered["perplexity"]["value"] == pytest.approx(expected)
    for one in recovered.values():
        low, high = one["ci95"]
        assert low < one["value"] < high < low + 0.1  # narrow, since it is paired
    assert (found["base-int4"]["recovered"]["kl"]["value"], found["base-bf16"]["recovered"]["kl"]["value"]) == (0, 1)
    table = pd.read_csv(results / "summary.csv")
    assert table["wikitext_kl_recovered"].tolist() == pytest.approx([1, 0, recovered["kl"]["value"]])


@pytest.mark.parametrize("headline", ["wikitext_kl", "wikitext_perplexity", "wikitext_top1_agreement"])
def test_the_headline_is_any_metric(results, headline):
    result = run(results, headline=headline)
    assert result.returncode == 0, result.stderr
    summarized = json.loads((results / "summary.json").read_text())
    metric = headline.removeprefix("wikitext_")
    assert summarized["headline"]["higher_is_better"] == (metric == "top1_agreement")
    for row in summarized["variants"]:
        text = row["divergence"]["wikitext"]
        assert row["headline"] == text[metric]
        assert (row["recovered"], row["recovered_ci95"]) == (
            text["recovered"][metric]["value"],
            text["recovered"][metric]["ci95"],
        )
    pair = summarized["comparisons"][0]
    assert (pair["metric"], pair["difference"] < 0, pair["resolved"]) == (headline, True, True)  # base-int4, base-bf16
    assert f"recovered of {headline}" in result.stdout


def test_a_headline_that_was_not_measured_is_an_error(results):
    result = run(results, headline="wikitext_bpc")
    assert result.returncode == 1
    assert "evaluation.headline: expected one of wikitext_kl, " in result.stderr


MEAN = {"higher_is_better": True, "aggregation": "mean", "weight_by_size": None}


RIGHT = dict(zip(VARIANTS, (60, 30, 45), strict=True))  # of a hundred documents


def test_further_tasks_stand_in_the_table(results):
    for name, right in RIGHT.items():
        metrics = {
            metric: (MEAN, (np.arange(100) < count).astype(float), np.ones(100))
            for metric, count in {"acc,none": 10, "acc_norm,none": right}.items()
        }
        made_results.write_task(results / name, "arc_challenge", metrics)
    result = run(results, tasks=["arc_challenge=acc_norm,none"])
    assert result.returncode == 0, result.stderr
    rows = json.loads((results / "summary.json").read_text())["variants"]
    qat = rows[2]["tasks"]["arc_challenge"]
    assert (qat["metric"], qat["value"], qat["stderr"]) == ("acc_norm,none", 0.45, 0.02)
    assert qat["recovered"] == pytest.approx(0.5)
    assert qat["recovered_ci95"][0] < 0.5 < qat["recovered_ci95"][1]
    half = 1.96 * np.sqrt(0.45 * 0.55 / 99)
    assert qat["ci95"] == pytest.approx([0.45 - half, 0.45 + half], abs=0.01)
    table = pd.read_csv(results / "summary.csv")
    assert table["arc_challenge"].tolist() == [0.6, 0.3, 0.45]
    assert table["arc_challenge_stderr"].tolist() == [0.02] * 3
    assert table["arc_challenge_recovered"].tolist() == pytest.approx([1, 0, 0.5])
    result = run(results, tasks=["arc_challenge=f1,none"])
    assert result.returncode == 1
    assert "arc_challenge.json: expected a metric acc,none or acc_norm,none, found 'f1,none'" in result.stderr


WIKITEXT = {
    "word_perplexity,none": ("weighted_perplexity", 1),
    "byte_perplexity,none": ("weighted_perplexity", 5),
    "bits_per_byte,none": ("bits_per_byte", 5),
}


def write_wikitext(results):
    """Write the log-likelihoods of sixty pages, weighted by words and by bytes, five per word."""
    generator = np.random.default_rng(0)
    words = generator.integers(50, 500, 60).astype(float)
    losses = words * generator.uniform(3, 4, 60)
    for name, worse in zip(VARIANTS, (1, 1.2, 1.05), strict=True):
        metrics = {
            metric: (
                {"higher_is_better": False, "aggregation": by, "weight_by_size": None},
                -worse * losses,
                of * words,
            )
            for metric, (by, of) in WIKITEXT.items()
        }
        made_results.write_task(results / name, "wikitext_task", metrics)


@pytest.mark.parametrize("metric", WIKITEXT)
def test_where_lower_is_better_recovery_is_on_the_logarithm(results, metric):
    """The three metrics are functions of one log-likelihood, so they recover the same share: (1.2 - 1.05) / 0.2."""
    write_wikitext(results)
    assert run(results, tasks=[f"wikitext_task={metric}"], headline="wikitext_task").returncode == 0
    summarized = json.loads((results / "summary.json").read_text())
    qat = summarized["variants"][2]
    assert qat["tasks"]["wikitext_task"]["recovered"] == pytest.approx(0.75)
    assert qat["tasks"]["wikitext_task"]["recovered_ci95"] == pytest.approx([0.75, 0.75])  # the same on every page
    assert (summarized["headline"]["higher_is_better"], qat["recovered"]) == (False, pytest.approx(0.75))
    low, high = qat["tasks"]["wikitext_task"]["ci95"]
    assert low < qat["tasks"]["wikitext_task"]["value"] < high


def test_no_metric_has_the_name_of_a_column(results):
    """The names that a config may not give cover all columns, including a metric's name with a suffix."""
    write_wikitext(results)
    calibrated = {"base-int4": "gptq"}  # the source of its codes does not matter here
    assert run(results, tasks=["wikitext_task=bits_per_byte,none"], calibrated=calibrated).returncode == 0
    found = set(pd.read_csv(results / "summary.csv").columns)
    names = ["mmlu", "wikitext_task", *(f"wikitext_{metric}" for metric in metric_names.OF_TEXTS)]
    derived = {f"{name}_{suffix}" for name in names for suffix in metric_names.SUFFIXES}
    known = {*metric_names.COLUMNS, *names, *derived, "speedup_batch_256"}
    assert found <= known
    assert set(metric_names.COLUMNS) <= found


def test_units_that_do_not_vary_have_no_interval(results):
    """A task of a single document has no spread from which to estimate an interval."""
    for name, right in RIGHT.items():
        made_results.write_task(results / name, "alone", {"acc,none": (MEAN, np.array([right / 100]), np.ones(1))})
    assert run(results, tasks=["alone=acc,none"]).returncode == 0
    summarized = json.loads((results / "summary.json").read_text())
    found = summarized["variants"][2]["tasks"]["alone"]
    assert (found["ci95"], found["recovered"]) == (None, None)
    assert "alone" not in {pair["metric"] for pair in summarized["comparisons"]}


def test_a_metric_that_documents_do_not_make_has_no_interval(results):
    f1 = {"higher_is_better": True, "aggregation": "f1_score", "weight_by_size": None}
    for name in VARIANTS:
        made_results.write_task(results / name, "copa", {"acc,none": (MEAN, np.ones(9), np.ones(9))})
        report = made_results.task({"f1,none": made_results.Metric(**f1, value=0.5, stderr=None)})
        (results / name / "tasks" / "copa.json").write_text(json.dumps(report))
    assert run(results, tasks=["copa=f1,none"]).returncode == 0
    found = json.loads((results / "summary.json").read_text())["variants"][2]["tasks"]["copa"]
    assert (found["value"], found["ci95"], found["recovered"]) == (0.5, None, None)


def test_ones_own_questions_stand_beside_mmlu_or_in_its_place(results):
    for name in VARIANTS:
        (results / name / "questions").mkdir()
        answers = pd.read_parquet(results / name / "mmlu_samples.parquet")
        answers.to_parquet(results / name / "questions" / "own_samples.parquet")
        score = json.loads((results / name / "mmlu.json").read_text()) | {"groups": 1, "by_group": {}}
        (results / name / "questions" / "own.json").write_text(json.dumps(score))
    assert run(results, questions=["own"]).returncode == 0
    both = json.loads((results / "summary.json").read_text())["variants"][2]
    assert both["questions"]["own"]["recovered"] == both["mmlu"]["recovered"] == pytest.approx(0.5)
    assert run(results, questions=["own"], headline="own", mmlu=()).returncode == 0
    alone = json.loads((results / "summary.json").read_text())["variants"][2]
    assert (alone["mmlu"], alone["questions"]["own"]) == (None, both["questions"]["own"])
    assert alone["recovered"] == pytest.approx(0.5)
    assert alone["by_category"]["anatomy"]["recovered"] == pytest.approx(0.5)
    table = pd.read_csv(results / "summary.csv")
    assert "accuracy" not in table
    assert table["own"].tolist() == pytest.approx([0.9, 0.7, 0.8])
