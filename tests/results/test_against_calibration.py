"""Test the comparison with each metric's best calibrated base: the share of its cost recovered, and who won."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

import made_results
import test_plot_results
from configs import demo_config
from int4_qat.config import recipes
from int4_qat.results import calibrated_bases, measurements, summary, tables, verification
from int4_qat.results import card as cards
from int4_qat.system.errors import InputError

RIGHT = {"base-bf16": 0.9, "base-int4": 0.7, "base-gptq": 0.84, "base-awq": 0.8, "lora-gptq": 0.84, "qat-int4": 0.88}
KL = {"base-bf16": 0.0, "base-int4": 0.3, "base-gptq": 0.2, "base-awq": 0.1, "lora-gptq": 0.15, "qat-int4": 0.05}
CALIBRATED = {"base-gptq": "gptq", "base-awq": "awq"}
WIKITEXT = f"hf://datasets/Salesforce/wikitext@{'a' * 40}"
FACTS = {
    "splits": {"auxiliary_train": {"rows": 3000}},
    "costs": {"stages": [], "total": {"hours": 1.0, "gpu_hours": 0.5, "unfinished_hours": None}},
}


def shared(generator):
    """Return how hard each question and each window is, equally for every variant."""
    return generator.uniform(size=made_results.QUESTIONS), generator.uniform(0.2, 1.8, made_results.WINDOWS)


def write(results, name, right, kl):
    """Write a variant that finds the same questions and windows hard as the others.

    RIGHT and KL make base-gptq the best calibrated base on questions and base-awq the best on texts.
    """
    questions, windows = shared(np.random.default_rng(7))
    generator = np.random.default_rng(list(name.encode()))
    made_results.write_variant(results / name, right, generator)
    difficulty = questions + generator.normal(0, 0.05, len(questions))
    made_results.write_answers(results / name, difficulty.argsort().argsort() < right * len(questions), generator)
    made_results.write_windows(results / name, made_results.windows_of(name, kl * windows, generator))


@pytest.fixture
def made(tmp_path):
    """Write the results of six variants, two of them calibrated bases, and return their folder."""
    for name, right in RIGHT.items():
        write(tmp_path, name, right, KL[name])
    (tmp_path / "qat-int4" / "parity.json").write_text(json.dumps(made_results.parity()))
    return tmp_path


def settings_of(published="qat-int4"):
    """Return the demo's settings, changed to match the written results."""
    settings = recipes.settings_of(demo_config(), "demo")
    entry = settings["quantizations"]["int4"]
    settings["quantizations"] |= {method: entry | {"method": method} for method in ("gptq", "awq")}
    settings["variants"] = list(RIGHT)
    settings["evaluation"] |= {key: None for key in ("memory", "latency")}
    settings["evaluation"] |= {"memory": {"dtype": "bfloat16"}, "latency": {"engine": "transformers"}}
    settings["evaluation"]["mmlu"] = {"num_fewshot": 0, "dtype": "bfloat16"}
    settings["evaluation"]["divergence"] = {"texts": {"wikitext": {}}, "context": 101, "dtype": "bfloat16"}
    settings["texts"] = {"wikitext_train": {"source": WIKITEXT, "files": "train-*.parquet", "column": "text"}}
    settings["calibration"] = {"texts": ["questions", "wikitext_train"], "samples": 128, "length": 1024, "seed": 5}
    settings["card"]["variant"] = published
    return settings


def derive(results, calibrated=CALIBRATED, headline="mmlu"):
    settings = settings_of()
    measured = measurements.summarized(measurements.asked(settings))
    references = dict.fromkeys(RIGHT, "base-int4")
    return summary.derive(results, measured, settings["arms"], references, calibrated, headline, {})


def correct(results, name):
    return pd.read_parquet(results / name / "mmlu_samples.parquet")["correct"].to_numpy(float)


def kls(results, name):
    return pd.read_parquet(results / name / "divergence_samples.parquet")["kl"].to_numpy() / 100


def ratio(x, base, calibrated):
    """Return (x - c) / (b - c) of the mean scores, where c is calibrated, and its paired interval by Fieller (1954)."""
    gained, lost = x - calibrated, base - calibrated
    of_means = np.outer(*2 * [[gained.mean(), lost.mean()]]) - 1.96**2 * np.cov(gained, lost) / len(x)
    ends = np.roots([of_means[1, 1], -2 * of_means[0, 1], of_means[0, 0]])
    return gained.mean() / lost.mean(), sorted(ends)


def close(found, expected):
    """Return whether a bootstrap's ends are within a tenth of the interval's width of those for normal means."""
    return found == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))


def test_the_best_calibrated_base_is_that_of_each_metric(made):
    for row in derive(made)["variants"]:
        assert row["calibrated_baseline"] == row["mmlu"]["calibrated_baseline"] == "base-gptq"
        recovered = row["divergence"]["wikitext"]["recovered"]
        assert {one["of_calibrated"]["baseline"] for one in recovered.values()} == {"base-awq"}
    (row, *_) = derive(made, headline="wikitext_kl")["variants"]
    assert (row["calibrated_baseline"], row["mmlu"]["calibrated_baseline"]) == ("base-awq", "base-gptq")


@pytest.mark.parametrize("name", ["base-int4", "base-awq", "lora-gptq", "qat-int4"])
def test_what_is_won_back_of_an_accuracy(made, name):
    row = next(row for row in derive(made)["variants"] if row["name"] == name)
    value, ci95 = ratio(*(correct(made, one) for one in (name, "base-bf16", "base-gptq")))
    for shown in (row, row["mmlu"], row["by_category"]["stem"]):
        assert shown["recovered_of_calibrated"] == pytest.approx(value)
        assert close(shown["recovered_of_calibrated_ci95"], ci95)
        assert shown["recovered_of_calibrated_resolved"]
    against_rounding, _ = ratio(*(correct(made, one) for one in (name, "base-bf16", "base-int4")))
    assert row["recovered"] == pytest.approx(against_rounding)


def test_what_is_won_back_of_a_divergence(made):
    found = {row["name"]: row["divergence"]["wikitext"]["recovered"]["kl"] for row in derive(made)["variants"]}
    x, awq = kls(made, "qat-int4"), kls(made, "base-awq")
    value, ci95 = ratio(-x, np.zeros(len(x)), -awq)
    shown = found["qat-int4"]["of_calibrated"]
    assert shown["value"] == pytest.approx(value) == pytest.approx(1 - x.mean() / awq.mean())
    assert close(shown["ci95"], ci95)
    # The windows differ by a factor of up to nine, so the interval of two independent means would be several times
    # as wide.
    apart = np.hypot(*(np.std(one, ddof=1) / one.mean() for one in (x, awq))) * x.mean() / awq.mean()
    assert shown["ci95"][1] - shown["ci95"][0] < 2 * 1.96 * apart / np.sqrt(len(x)) / 3
    assert (found["base-awq"]["of_calibrated"]["value"], found["base-bf16"]["of_calibrated"]["value"]) == (0, 1)


def test_of_a_calibrated_base_that_lost_nothing_there_is_no_share(made):
    made_results.write_answers(made / "base-gptq", correct(made, "base-bf16") > 0, np.random.default_rng(0))
    row = derive(made)["variants"][-1]
    keys = ("calibrated_baseline", "recovered_of_calibrated", "recovered_of_calibrated_ci95")
    assert [row[key] for key in keys] == ["base-gptq", None, None]
    assert not row["recovered_of_calibrated_resolved"]
    assert row["recovered"] == pytest.approx(0.9)
    assert row["divergence"]["wikitext"]["recovered"]["kl"]["of_calibrated"]["resolved"]


def without_calibrated(found):
    """Return a summary without the keys that calibrated bases add to it."""
    if isinstance(found, dict):
        return {key: without_calibrated(value) for key, value in found.items() if "calibrat" not in key}
    return [without_calibrated(one) for one in found] if isinstance(found, list) else found


def test_without_a_calibrated_base_nothing_is_said_of_one(made):
    plain, calibrated = derive(made, calibrated={}), derive(made)
    assert plain["training_against_calibration"] == []
    for row in plain["variants"]:
        assert row["calibrated_baseline"] is row["mmlu"]["recovered_of_calibrated"] is None
        assert row["divergence"]["wikitext"]["recovered"]["kl"]["of_calibrated"]["value"] is None
    assert without_calibrated(plain["variants"]) == without_calibrated(calibrated["variants"])
    assert {pair["reference"] for pair in plain["comparisons"]} == {"base-bf16", "base-int4"}
    measured = measurements.summarized(measurements.asked(settings_of()))
    columns = {tuple(tables.flat(found["variants"], measured)) for found in (plain, calibrated)}
    added = set(max(columns, key=len)) - set(min(columns, key=len))
    assert added == {
        f"{metric}recovered_of_calibrated{end}"
        for metric in ("", "mmlu_", *(f"wikitext_{one}_" for one in ("kl", "top1_agreement", "perplexity")))
        for end in ("", "_low", "_high")
    }


def test_the_table_has_a_second_recovered(made):
    found = derive(made)
    measured = measurements.summarized(measurements.asked(settings_of()))
    table = tables.flat(found["variants"], measured).set_index("variant")
    row = found["variants"][-1]
    ends = ["wikitext_kl_recovered_of_calibrated_low", "wikitext_kl_recovered_of_calibrated_high"]
    of_text = row["divergence"]["wikitext"]["recovered"]["kl"]["of_calibrated"]
    assert table.loc["qat-int4", ends].tolist() == of_text["ci95"]
    assert table["recovered_of_calibrated"].to_dict() == pytest.approx(
        {name: (right - 0.84) / 0.06 for name, right in RIGHT.items()}
    )


def test_what_was_trained_is_compared_with_it(made):
    compared = derive(made)["comparisons"]
    against = [(pair["metric"], pair["variant"], pair["reference"]) for pair in compared]
    wanted = [("mmlu", name, "base-gptq") for name in ("lora-gptq", "qat-int4")]
    wanted += [("wikitext_kl", name, "base-awq") for name in ("lora-gptq", "qat-int4")]
    assert [pair for pair in against if pair[2] in CALIBRATED and pair[0] in ("mmlu", "wikitext_kl")] == wanted
    (pair,) = (each for each, names in zip(compared, against, strict=True) if names == wanted[1])
    gained = correct(made, "qat-int4") - correct(made, "base-gptq")
    half = 1.96 * gained.std(ddof=1) / np.sqrt(len(gained))
    assert pair["difference"] == pytest.approx(gained.mean())
    assert close(pair["difference_ci95"], [gained.mean() - half, gained.mean() + half])
    # Holm multiplies the smallest p by the number of pairs, including those against the calibrated base.
    of_mmlu = [each for each in compared if each["metric"] == "mmlu"]
    least = min(of_mmlu, key=lambda each: each["mcnemar_p"])
    assert least["mcnemar_p_holm"] == pytest.approx(min(least["mcnemar_p"] * len(of_mmlu), 1))
    assert len(of_mmlu) == 5 + 4 + 2  # against base-bf16, base-int4 and the best calibrated base


def tie(results):
    """Make qat-int4 win and lose equally often against the best calibrated bases."""
    base = correct(results, "base-gptq") > 0
    flipped = np.concatenate([np.flatnonzero(base)[:5], np.flatnonzero(~base)[:5]])
    base[flipped] = ~base[flipped]
    made_results.write_answers(results / "qat-int4", base, np.random.default_rng(0))
    windows = pd.read_parquet(results / "base-awq" / "divergence_samples.parquet")
    windows["kl"] += np.tile([0.1, -0.1], len(windows) // 2)
    made_results.write_windows(results / "qat-int4", windows)


def lose(results):
    made_results.write_answers(results / "qat-int4", correct(results, "base-int4") > 0, np.random.default_rng(0))
    windows = pd.read_parquet(results / "base-int4" / "divergence_samples.parquet")
    made_results.write_windows(results / "qat-int4", windows)


def complete(results, published="qat-int4"):
    """Write the other files that a card needs, and return its settings."""
    settings = settings_of(published)
    folder = results / published / "checkpoint"
    folder.mkdir()
    manifest = {
        "scheme": {key: settings["quantizations"]["int4"][key] for key in ("type", "num_bits", "symmetric")},
        "method": settings["quantizations"][published.partition("-")[2]]["method"],
        "format": "torchao-plain",
        "layers": [{"quantized": True}],
        "share_in_int4": 0.9,
        "weights_that_differ": 0,
    }
    manifest["scheme"] |= {"zero_point": "float", "group_size": 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "calibration.json").write_text(json.dumps(settings["calibration"] | {"method": "gptq", "texts": {}}))
    config = {"model_type": "gemma3_text", "quantization_config": {"quant_method": "torchao"}}
    (folder / "config.json").write_text(json.dumps(config))
    (results / "costs.json").write_text(json.dumps(FACTS["costs"]))
    about = {"model": "demo", "data": {"splits": FACTS["splits"]}, "contamination": {}}
    (results / "summary.json").write_text(json.dumps(about | derive(results)))
    return settings


@pytest.mark.parametrize(("change", "said"), [(None, "yes"), (lose, "no"), (tie, "not resolved")])
def test_the_card_says_whether_training_beat_calibration(made, change, said):
    if change:
        change(made)
    card = cards.render(made, complete(made))
    (sentence,) = re.findall(r"^\*\*Did training beat the best calibrated base\?\*\* .*$", card, re.MULTILINE)
    gained = 100 * (correct(made, "qat-int4") - correct(made, "base-gptq")).mean()
    number = r"([+-][\d.]+)"
    of_mmlu = re.search(
        rf"mmlu: (.*?), qat-int4 against base-gptq \(gptq\) {number} \[{number}, {number}\] points", sentence
    )
    assert of_mmlu[1] == said
    assert float(of_mmlu[2]) == pytest.approx(gained, abs=0.005)
    saved = (kls(made, "base-awq") - kls(made, "qat-int4")).mean()
    of_kl = re.search(
        rf"wikitext_kl: (.*?), qat-int4 against base-awq \(awq\) {number} \[{number}, {number}\] nats per token",
        sentence,
    )
    assert of_kl[1] == said
    assert float(of_kl[2]) == pytest.approx(saved, abs=5e-5)
    for found in (of_mmlu, of_kl):
        low, high = float(found[3]), float(found[4])
        assert {"yes": low > 0, "no": high < 0, "not resolved": low < 0 < high}[said]


def test_the_log_says_it_of_each_trained_variant(made):
    lose(made)
    found = derive(made)
    measured = measurements.summarized(measurements.asked(settings_of()))
    printed = tables.printed(found, measured)
    (title,) = (title for title in printed if title.startswith("did training beat"))
    rows = {(row["metric"], row["variant"]): row for row in printed[title].to_dict("records")}
    assert set(rows) == {(metric, name) for metric in ("mmlu", "wikitext_kl") for name in ("lora-gptq", "qat-int4")}
    assert rows["mmlu", "qat-int4"]["training_won"] == rows["wikitext_kl", "lora-gptq"]["training_won"] == "no"
    assert rows["wikitext_kl", "qat-int4"]["against"] == "base-awq (awq)"
    assert "recovered of base-gptq's cost" in printed["variants"]
    assert "recovered of base-awq's cost" in printed["divergence from base-bf16"]


def test_a_calibrated_base_is_published_as_what_it_is(made):
    settings = complete(made, "base-gptq")
    settings |= {"source": f"hf://google/gemma-3-12b-it@{'b' * 40}", "data": {"source": WIKITEXT.replace("wiki", "q")}}
    card = cards.render(made, settings)
    text = ModelCard(card).text
    assert text.strip().startswith("# GPTQ INT4 google/gemma-3-12b-it")
    assert "QAT" not in text.replace("pytorch/gemma-3-12b-it-QAT-INT4", "")
    assert "calibrated by `gptq` and not trained,\nand quantized to int4" in text
    assert "The base model was calibrated, not trained." in text
    assert "`gptq` read 128 samples of 1024 tokens, in equal shares of these texts, drawn with seed 5." in text
    assert "| questions | the formatted questions of Salesforce/qtext |" in text
    assert re.search(
        r"^\| wikitext_train \| \[Salesforce/wikitext\]\(.*\), revision `a+`, `\"train-\*.parquet\"` \|$", text, re.M
    )
    assert "fine-tuned" not in text
    assert "Rebuilt from" not in text
    assert "training saw" not in text
    assert "results/demo/base-gptq/checkpoint --forcerun calibrate\n" in text
    data = ModelCard(card).data
    assert data.datasets == ["Salesforce/qtext", "Salesforce/wikitext"]
    assert "qat" not in data.tags
    # The published variant was not trained, so the sentence is about the variants that were.
    (sentence,) = re.findall(r"^\*\*Did training .*$", text, re.MULTILINE)
    assert all(f"{name} against base-gptq" in sentence for name in ("qat-int4", "lora-gptq"))


def test_an_arm_may_be_calibrated_after_its_training_or_before(made):
    after = cards.render(made, complete(made, "lora-gptq"))
    assert "fine-tuned with LoRA by transformers, trl, peft and torchao, merged,\nand quantized to int4" in after
    assert "- **Calibration:** by `gptq`, after the training\n" in after
    settings = complete(made)
    settings["arms"]["qat"]["start"] = "gptq"
    before = cards.render(made, settings)
    assert "- **Calibration:** by `gptq`, before the training\n" in before
    assert "(QAT), from weights that `gptq` had calibrated, by transformers" in before
    assert "QAT int4, weight only" in before


def test_the_card_says_what_was_learned_and_from_which_texts(made):
    settings = complete(made)
    plain = ModelCard(cards.render(made, settings)).text
    assert "Only the answers count in the loss: the tokens between the two markers.\n" in plain
    assert "- The training texts are multiple-choice questions" in plain
    assert re.search(r"^\| questions \| 1 \| .* \| not stated \|$", plain, re.MULTILINE)
    entry = {"source": WIKITEXT, "files": "train-*.parquet", "column": "text", "license": "cc-by-sa-3.0"}
    settings["texts"] = {"wikitext_train": entry}
    settings["data"]["license"] = "mit"
    settings["arms"]["qat"] |= {
        "distillation": {"weight": 0.5, "tokens": "all", "temperature": 2},
        "texts": {"questions": 1, "wikitext_train": 3},
        "grid_learning_rate": 1e-3,
    }
    text = ModelCard(cards.render(made, settings)).text
    expected = (
        "The loss is 0.5 · T² · KL(base in bf16 || model) at temperature T = 2, on every token of the texts; the rest"
    )
    assert f"{expected} is the cross-entropy of the answers.\n" in text
    assert "The scale and the zero point of each group were trained as well.\n" in text
    assert re.search(r"^\| questions \| 1 \| .* \| mit \|$", text, re.MULTILINE)
    source = r"\[Salesforce/wikitext\]\(.*\), revision `a+`, `\"train-\*.parquet\"`"
    assert re.search(rf"^\| wikitext_train \| 3 \| {source} \| cc-by-sa-3.0 \|$", text, re.MULTILINE)
    assert "Only the answers count" not in text
    assert "The training texts are multiple-choice questions" not in text


def test_the_card_counts_test_questions_in_each_text_that_was_trained_on(made):
    settings = complete(made)
    settings["texts"] = {"mine": {"source": WIKITEXT, "files": "*.txt"}, "unused": {"source": WIKITEXT, "files": "*"}}
    settings["arms"]["qat"]["texts"] = {"questions": 1, "mine": 1}
    summary = json.loads((made / "summary.json").read_text())
    counted = {"questions": 10, "exact": 1, "exact_with_choices": 0, "normalized": 2, "normalized_with_choices": 1}
    summary["contamination"] = {"mmlu": counted | {"in_texts": {"mine": 5, "unused": 7}}}
    (made / "summary.json").write_text(json.dumps(summary))
    card = cards.render(made, settings)
    assert "1 of the 10 test questions of mmlu also occur among the training questions, 0 of them with the same" in card
    assert "5 of the test questions share a sequence of words with the text mine.\n" in card
    assert "unused" not in card


def test_a_calibration_by_other_settings_is_no_secret(made):
    settings = complete(made, "base-gptq")
    settings["calibration"] |= {"samples": 7}
    with pytest.raises(InputError, match=r"calibration\.json: samples: expected 7, as in the config, found 128;"):
        cards.render(made, settings)


def test_the_plots_say_it_and_tell_the_bases_apart(made):
    complete(made)
    for arm in ("lora", "qat"):
        (made / arm).mkdir()
        pd.DataFrame({"step": [1, 2], "loss": 0.5}).to_csv(made / arm / "training.csv", index=False)
    result = test_plot_results.draw(made, arms=["lora", "qat"])
    assert result.returncode == 0, result.stderr
    for plot, metric, base in (
        ("headline", "mmlu", "base-gptq (gptq)"),
        ("divergence", "wikitext_kl", "base-awq (awq)"),
    ):
        drawn = (made / "plots" / f"{plot}.svg").read_text()
        assert len(re.findall(rf"<!-- {metric}: .*, (?:lora-gptq|qat-int4) against {re.escape(base)} ", drawn)) == 2
        assert "<!-- did training beat the best calibrated base? (above 0 it did) -->" in drawn
        assert {"<!-- base-int4 -->", "<!-- base-gptq -->", "<!-- base-awq -->"} <= set(
            re.findall(r"<!-- \S+ -->", drawn)
        )


def test_only_weights_that_training_saw_have_parity():
    asked = {name: [one.name for one in found] for name, found in measurements.asked(settings_of()).items()}
    assert [name for name in asked if "parity" in asked[name]] == ["qat-int4"]
    assert asked["lora-gptq"] == asked["base-gptq"] == ["divergence", "mmlu", "memory", "latency"]


def test_the_settings_say_which_bases_are_calibrated():
    settings = settings_of()
    assert calibrated_bases.bases(settings) == CALIBRATED
    settings["quantizations"]["awq"]["method"] = "rtn"
    assert calibrated_bases.bases(settings) == {"base-gptq": "gptq"}


def test_a_verdict_that_was_touched_up_is_found(made):
    settings = complete(made)
    assert list(verification.wrong_numbers(made, settings)) == []
    written = json.loads((made / "summary.json").read_text())
    written["training_against_calibration"][0]["training_won"] = False
    (made / "summary.json").write_text(json.dumps(written))
    (problem,) = verification.wrong_numbers(made, settings)
    assert problem.startswith("summary.json: training_against_calibration[0].training_won: expected None from the")


def test_seeds_are_held_against_it_together(made):
    """The mean of three seeds, of decreasing accuracy, is compared with the calibrated base."""
    arms = {f"qat_{seed}": {"quantization": "int4", "seed": seed} for seed in (1, 2, 3)}
    for seed, arm in enumerate(arms):
        write(made, f"{arm}-int4", RIGHT["qat-int4"] - seed / 100, KL["qat-int4"])
    names = ["base-bf16", "base-int4", "base-gptq", *(f"{arm}-int4" for arm in arms)]
    measured = {name: [measurements.DIVERGENCE, measurements.MMLU] for name in names}
    found = summary.derive(made, measured, arms, dict.fromkeys(names, "base-int4"), CALIBRATED, "mmlu", {})
    (group,) = found["seeds"]["headline"]
    assert group["recovered_of_calibrated"] == pytest.approx((0.87 - 0.84) / (0.9 - 0.84))
    low, high = group["recovered_of_calibrated_ci95"]
    assert low < 0.5 < high
    pairs = {tuple(pair["references"]): pair["mean"] for pair in found["seeds"]["difference"]}
    assert pairs[("base-gptq",) * 3] == pytest.approx(0.03)


@pytest.mark.parametrize(("headline", "units"), [("mmlu", "questions"), ("wikitext_kl", "units")])
def test_seeds_stand_in_the_card_whatever_the_headline_is(made, headline, units):
    settings = complete(made)
    group = {"variants": ["qat-int4", "lora-gptq"], "mean": 0.1, "ci95": [0.05, 0.15]}
    group |= {"sd_between_seeds": 0.05, "stderr_within_units": 0.01}
    written = json.loads((made / "summary.json").read_text()) | derive(made, headline=headline)
    written["seeds"]["headline"] = [group]
    (made / "summary.json").write_text(json.dumps(written))
    card = cards.render(made, settings)
    assert f"| standard deviation between seeds | standard error within {units} |" in card
    assert "| qat-int4, lora-gptq |" in card
