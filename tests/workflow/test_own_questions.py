"""Test a run on the user's own questions instead of MMLU: they become the headline, and MMLU is not evaluated."""

import json

import pandas as pd
import pytest

from configs import demo_config
from workflows import demo, small_config, write_config

NAMES = ["base-bf16", "base-int4"]


@pytest.fixture(scope="module")
def run(untrained, tmp_path_factory):
    """Run the small config without arms, on two groups of twenty questions with two to four choices each.

    Return the folder of the run.
    """
    folder = tmp_path_factory.mktemp("own questions")
    rows = [
        {
            "question": f"Which is {number}?",
            "choices": [f"the {choice}" for choice in ["one", "two", "three", "four"][: 2 + number % 3]],
            "answer": number % 2,
            "group": "even" if number % 2 else "odd",
        }
        for number in range(40)
    ]
    pd.DataFrame(rows).to_parquet(folder / "own.parquet")
    config = small_config(untrained)
    asked = demo_config()["evaluation"]["mmlu"] | {"name": "own", "source": str(folder / "own.parquet")}
    del asked["shards"]
    config["evaluation"] |= {"mmlu": None, "questions": [asked]}
    config["finetune"]["arms"] = {}
    config["plots"]["colours"] = {"base": "#7a7a7a"}
    config |= {"variants": NAMES}
    config["publish"] |= {"variant": "base-int4"}
    result = demo(folder / "run", "--configfile", write_config(config, folder / "config.yaml"))
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "run"


@pytest.mark.slow
def test_the_headline_follows(run):
    summary = json.loads((run / "results" / "demo" / "summary.json").read_text())
    assert summary["headline"]["metric"] == "own"
    assert [row["mmlu"] for row in summary["variants"]] == [None, None]
    assert list(summary["variants"][1]["by_category"]) == ["even", "odd"]
    assert summary["contamination"]["own"]["questions"] == 40
    for row in summary["variants"]:
        samples = pd.read_parquet(run / "results" / "demo" / row["source"]["own_samples"])
        assert row["headline"]["value"] == row["questions"]["own"]["accuracy"] == samples["correct"].mean()


@pytest.mark.slow
def test_nothing_of_mmlu_is_made(run):
    assert not (run / "resources" / "mmlu").exists()
    assert list(run.rglob("mmlu.json")) == []
    card = (run / "results" / "demo" / "model_card.md").read_text()
    assert "### own\n" in card
    assert "### MMLU" not in card
