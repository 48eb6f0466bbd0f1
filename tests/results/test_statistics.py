"""Test that intervals cover the truth as often as they claim, and that figures agree with published formulas.

Figures that are not resolved must be withheld.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from int4_qat.results import metrics, statistics

VARIANTS = ["base-bf16", "base-int4", "qat-int4"]


def table_of(correct: np.ndarray, subjects: int, columns=VARIANTS) -> pd.DataFrame:
    """Return correct (questions x variants) as a table of answers, with subjects of equal size."""
    size = len(correct) // subjects
    index = pd.MultiIndex.from_product([[f"s{i:02}" for i in range(subjects)], range(size)], names=["subject", "index"])
    return pd.DataFrame(correct, index, columns)


def draw(rights: np.ndarray, size: int, generator: np.random.Generator) -> pd.DataFrame:
    """Draw answers from the shares of correct ones (subjects x variants).

    Seven of ten questions are equally hard for all variants.
    """
    alike, shared, own = (generator.random((len(rights), size, n)) for n in (1, 1, rights.shape[1]))
    ease = np.where(alike < 0.7, shared, own)
    return table_of((ease < rights[:, None]).reshape(-1, rights.shape[1]), len(rights), VARIANTS[: rights.shape[1]])


def simulate(rights: np.ndarray, size: int = 100, times: int = 400):
    """Yield the given number of random tables, each with its accuracies and its resamples."""
    generator = np.random.default_rng(1)
    for _ in range(times):
        correct = draw(rights, size, generator)
        yield correct, correct.mean(), pool(correct, 1000)


def pool(correct, resamples=statistics.RESAMPLES):
    """Return resampled accuracies over all questions: one row per resample, one column per variant."""
    return metrics.scores(metrics.make("mmlu", metrics.SHARE, correct, resamples=resamples)).resampled


def recovery(accuracy, resampled):
    return statistics.recovery("qat-int4", accuracy, resampled, *VARIANTS[:2])


@pytest.fixture(scope="module")
def rights():
    """Return the accuracies (subjects x variants) of unequal subjects: int4 costs four points, QAT recovers one."""
    bf16 = np.linspace(0.4, 0.95, 20)
    return np.stack([bf16, bf16 - 0.04, bf16 - 0.03], axis=1)


def test_intervals_cover_the_truth(rights):
    covered = {"accuracy": [], "difference": [], "recovered": []}
    for correct, accuracy, resampled in simulate(rights):
        low, high = statistics.wilson(correct["qat-int4"].sum(), len(correct))
        covered["accuracy"].append(low <= rights[:, 2].mean() <= high)
        low, high = statistics.interval(resampled["qat-int4"] - resampled["base-int4"])
        covered["difference"].append(low <= 0.01 <= high)
        if ci95 := recovery(accuracy, resampled)["recovered_ci95"]:
            covered["recovered"].append(ci95[0] <= 0.25 <= ci95[1])
    assert len(covered["recovered"]) > 390
    # Two standard errors of the coverage of a 95% interval in 400 draws are 2.2 points. Wilson's interval ignores the
    # strata and may be wider.
    assert {name: np.mean(hits) for name, hits in covered.items()} == pytest.approx(
        dict.fromkeys(covered, 0.96), abs=0.032
    )


def test_intervals_cover_the_truth_with_two_questions_a_subject(rights):
    rights = np.repeat(rights, 5, axis=0)
    covered = []
    for _, _, resampled in simulate(rights, size=2):
        low, high = statistics.interval(resampled["qat-int4"] - resampled["base-bf16"])
        covered.append(low <= -0.03 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.032)


def test_a_ratio_over_nothing_is_not_resolved(rights):
    rights = rights[:, [0, 0, 2]]
    resolved = [recovery(accuracy, resampled)["recovered_resolved"] for _, accuracy, resampled in simulate(rights)]
    assert np.mean(resolved) <= 0.05


def test_a_small_cost_is_covered_or_not_resolved(rights):
    """int4 costs 1.5 points, barely more than the paired standard error on two thousand questions."""
    rights = rights - np.array([0, -0.025, -0.02])
    found = [recovery(accuracy, resampled)["recovered_ci95"] for _, accuracy, resampled in simulate(rights)]
    missed = [ci95 for ci95 in found if ci95 and not ci95[0] <= 1 / 3 <= ci95[1]]
    assert 0.1 < np.mean([ci95 is None for ci95 in found]) < 0.9
    assert len(missed) / len(found) <= 0.06


def test_what_is_not_resolved_has_no_numbers():
    correct = table_of(np.ones((100, 3), bool), 2)
    resampled = pool(correct)
    assert recovery(correct.mean(), resampled) == {
        "normalized_degradation": None,
        "recovered": None,
        "recovered_ci95": None,
        "recovered_resolved": False,
    }


def test_the_ratio_is_fiellers():
    """The interval agrees with the closed form for a ratio of means: Fieller (1954), with the normal quantile."""
    rights = np.tile([0.8, 0.6, 0.7], (1, 1))
    correct = draw(rights, 4000, np.random.default_rng(0))
    per_question = correct.to_numpy() @ np.array([[0, 1], [-1, -1], [1, 0]])  # numerator, denominator
    (a, b), ((vaa, vab), (_, vbb)) = per_question.mean(axis=0), np.cov(per_question.T) / len(correct)
    z = stats.norm.ppf(0.975)
    expected = sorted(np.roots([b**2 - z**2 * vbb, -2 * (a * b - z**2 * vab), a**2 - z**2 * vaa]))
    found = recovery(correct.mean(), pool(correct))
    assert found["recovered"] == pytest.approx(a / b)
    assert found["recovered_ci95"] == pytest.approx(expected, abs=0.01)


def test_accuracy_interval_is_the_published_one():
    """Newcombe (1998), Statistics in Medicine 17, table I, gives Wilson's intervals of 81/263, 15/148 and 0/20."""
    assert statistics.wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert statistics.wilson(15, 148) == pytest.approx([0.0624, 0.1605], abs=5e-5)
    assert statistics.wilson(0, 20) == pytest.approx([0.0, 0.1611], abs=5e-5)


def test_mcnemar_is_the_published_one():
    """Fagerland, Lydersen & Laake (2013), BMC Med. Res. Methodol. 13:91, give the exact p = 0.070 for 1 against 7."""
    assert statistics.mcnemar(1, 7) == statistics.mcnemar(7, 1) == pytest.approx(0.0703, abs=5e-5)
    assert statistics.mcnemar(0, 0) == 1


def test_holm_is_the_published_one():
    """Wikipedia's article on the Holm-Bonferroni method has this example; its first and last p are significant."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.5]) == [1, 1]
    assert statistics.holm([]) == []


def test_bootstrap_has_the_stratified_standard_error():
    """Subjects are strata, so the variance is sum(n s²) / N², where s² = p (1 - p) is the variance in a resample."""
    correct = draw(np.array([[0.95, 0.9], [0.3, 0.2]]), 500, np.random.default_rng(0))
    resampled = pool(correct)
    difference = correct["base-bf16"].astype(int) - correct["base-int4"]
    expected = np.sqrt((500 * difference.groupby("subject").var(ddof=0)).sum()) / 1000
    assert np.std(resampled["base-bf16"] - resampled["base-int4"]) == pytest.approx(expected, rel=0.03)
    mean = statistics.stratified_mean(difference)
    assert np.diff(mean["ci95"])[0] / 2 / stats.norm.ppf(0.975) == pytest.approx(expected, rel=0.003)


def answers(likelihoods, answer=0) -> pd.DataFrame:
    """Return answers with the given log-likelihoods of A to D."""
    table = table_of(np.asarray(likelihoods, float), 1, [f"log_likelihood_{letter}" for letter in "ABCD"])
    return table.assign(answer=answer, correct=table.to_numpy().argmax(axis=1) == answer)


def test_what_accuracy_hides():
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.7, 0.1, 0.1, 0.1])
    reference, x = answers(np.log([p, p, p[::-1]])), answers(np.log([q, q, q]) - 3)
    found = statistics.compare(x, reference)
    assert (found["wrong_to_right"], found["right_to_wrong"]) == (pytest.approx(1 / 3), 0)
    assert not statistics.difference(0.4, np.array([-0.1, 0.5, 0.9]))["resolved"]
    kl = [stats.entropy(p, q), stats.entropy(p, q), stats.entropy(p[::-1], q)]
    assert found["kl_divergence"]["mean"] == pytest.approx(np.mean(kl))
    change = np.log(0.7) - 3 - np.mean(np.log([0.4, 0.4, 0.1]))
    assert found["log_likelihood_change"]["mean"] == pytest.approx(change)


def test_seeds_and_questions_both_widen_the_interval():
    """Three seeds, whose accuracies have a standard deviation of three points, answer 500 questions.

    The truth is the mean over all seeds and all questions.
    """
    generator = np.random.default_rng(2)
    covered = []
    for _ in range(400):
        rights = 0.6 + 0.03 * generator.standard_normal((1, 3))
        correct = draw(rights, 500, generator)
        resampled = pool(correct, 500).to_numpy()
        found = statistics.over_seeds(correct.mean().tolist(), resampled)
        covered.append(found["ci95"][0] <= 0.6 <= found["ci95"][1])
    assert 0.93 <= np.mean(covered) <= 0.995


def test_seeds_that_agree_leave_the_questions():
    found = statistics.over_seeds(
        np.array([0.7, 0.7]), np.random.default_rng(0).normal(0.7, 0.01, (10_000, 1)) * [1, 1]
    )
    assert found["sd_between_seeds"] == 0
    assert np.diff(found["ci95"]) == pytest.approx(2 * 1.96 * 0.01, rel=0.03)
