"""lmms-eval's chartqa on the stand-in, bf16 and int4, and what is said when lmms-eval fails and ends with 0."""

import io
import json
import subprocess

import datasets
import matplotlib.pyplot as plt
import pytest

from conftest import ROOT, environment, small_config, snakemake, write_config

pytestmark = pytest.mark.slow

QUESTION = "Which is the tallest bar?"


def draw_chart(heights):
    """A bar chart as PNG."""
    figure, axes = plt.subplots(figsize=(2, 1.5))
    axes.bar(list("ABC"), heights)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    plt.close(figure)
    return png.getvalue()


@pytest.fixture(scope="module")
def charts(tmp_path_factory):
    """A data set in the layout of lmms-lab/ChartQA: three human questions and an augmented one."""
    folder = tmp_path_factory.mktemp("charts")
    rows = []
    for number in range(4):
        png = draw_chart([number + 1, 2, 3])
        rows.append(
            {
                "type": "human_test" if number else "augmented_test",
                "question": QUESTION,
                "answer": str(number),
                "image": {"bytes": png, "path": None},
            }
        )
    text = datasets.Value("string")
    features = datasets.Features({"type": text, "question": text, "answer": text, "image": datasets.Image()})
    datasets.Dataset.from_list(rows, features).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def run(untrained, charts, tmp_path_factory):
    """The folder of a run of the rule in lmms-eval's environment."""
    variables = environment("lmms") | {"HF_TOKEN": "hf_secret"}
    folder = tmp_path_factory.mktemp("chartqa run")
    config = small_config(untrained)
    settings = {"model": "gemma3", "limit": None, "batch_size": 1, "time_limit": 300}
    config["evaluation"]["chartqa"] = settings | {"source": str(charts)}
    path = write_config(config, folder / "config.yaml")
    targets = [f"results/demo/{variant}/chartqa.json" for variant in ("base-bf16", "base-int4")]
    options = ["--profile", "profiles/demo", "--configfile", path, "--directory", folder]
    result = snakemake(*options, *targets, env=variables)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_every_question_is_answered_and_counted(run):
    report = json.loads((run / "results/demo/base-bf16/chartqa.json").read_text())
    own = json.loads((run / "results/demo/base-bf16/lmms/chartqa_results.json").read_text())
    scores = own["results"]["chartqa"]
    assert report["relaxed_overall"] == scores["relaxed_overall,none"]
    assert report["relaxed_overall"] == pytest.approx((3 * report["human"] + report["augmented"]) / 4)
    assert (report["questions"], report["dequantized"]) == (4, False)


def test_int4_is_evaluated_from_a_dequantized_copy(run):
    report = json.loads((run / "results/demo/base-int4/chartqa.json").read_text())
    assert (report["questions"], report["dequantized"]) == (4, True)
    assert 0 <= report["relaxed_overall"] <= 1
    assert report["versions"]["lmms-eval"] == "0.7.3"


def test_no_token_stands_in_a_log_or_result(run):
    logs = [
        path for folder in ("logs", "results") for path in (run / folder).rglob("*") if path.suffix != ".safetensors"
    ]
    texts = [path.read_text(errors="replace") for path in logs if path.is_file()]
    assert any("Evaluation tracker args" in text for text in texts)
    assert not any("hf_secret" in text for text in texts)


def test_no_results_are_one_line_with_the_last_words(untrained, charts, tmp_path):
    variables = environment("lmms")
    options = {"checkpoint": untrained / "model", "model": "no_such_model", "dataset": charts, "batch-size": 1}
    options |= {"lmms-runs": tmp_path / "lmms", "output": tmp_path / "chartqa.json"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = ["python", str(ROOT / "scripts" / "evaluate_chartqa.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: lmms-eval wrote no results; the end of {tmp_path / 'lmms' / 'chartqa.log'}: ")
    assert "no_such_model" in last
    assert not (tmp_path / "chartqa.json").exists()
