"""Test lmms-eval's chartqa on the stand-in in bf16 and int4, and the error if lmms-eval fails but exits with 0."""

import io
import json
import shutil
import signal
import subprocess
import time

import datasets
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml

from int4_qat.results import chartqa_figures
from programs import ROOT, VARIANTS, environment, run_script
from workflows import write_config

pytestmark = pytest.mark.slow

QUESTION = "Which is the tallest bar?"


def draw_chart(heights):
    """Return a bar chart as PNG."""
    figure, axes = plt.subplots(figsize=(2, 1.5))
    axes.bar(list("ABC"), heights)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    plt.close(figure)
    return png.getvalue()


def write_charts(folder, answers):
    """Write a data set in the layout of lmms-lab/ChartQA; its first question is augmented, the others are human."""
    rows = [
        {
            "type": "human_test" if number else "augmented_test",
            "question": QUESTION,
            "answer": answer,
            "image": {"bytes": draw_chart([number + 1, 2, 3]), "path": None},
        }
        for number, answer in enumerate(answers)
    ]
    text = datasets.Value("string")
    features = datasets.Features({"type": text, "question": text, "answer": text, "image": datasets.Image()})
    datasets.Dataset.from_list(rows, features).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def charts(tmp_path_factory):
    return write_charts(tmp_path_factory.mktemp("charts"), "0123")


@pytest.fixture(scope="module")
def run(small_run, charts, tmp_path_factory):
    """Return a copy of the small run to which ChartQA was added, in lmms-eval's environment."""
    variables = environment("lmms") | {"HF_TOKEN": "hf_secret"}
    folder = tmp_path_factory.mktemp("chartqa run")
    config = yaml.safe_load(small_run.config.read_text()) | {"variants": [*VARIANTS, "lora-bf16"]}
    settings = {"model": "gemma3", "limit": None, "batch_size": 1, "time_limit": 300}
    config["evaluation"]["chartqa"] = settings | {"source": str(charts)}
    path = write_config(config, folder / "config.yaml")
    directory = shutil.copytree(small_run.directory, folder / "directory", symlinks=True)
    result = small_run._replace(config=path, directory=directory).snakemake(env=variables)
    assert result.returncode == 0, result.stderr[-3000:]
    return directory


def test_every_question_is_answered_and_counted(run):
    report = json.loads((run / "results/demo/base-bf16/chartqa.json").read_text())
    own = json.loads((run / "results/demo/base-bf16/lmms/chartqa_results.json").read_text())
    scores = own["results"]["chartqa"]
    assert report["relaxed_overall"] == scores["relaxed_overall,none"]
    assert report["relaxed_overall"] == pytest.approx((3 * report["human"] + report["augmented"]) / 4)
    assert (report["questions"], report["dequantized"]) == (4, False)
    samples = pd.read_parquet(run / "results/demo/base-bf16/chartqa_samples.parquet")
    assert samples["index"].tolist() == [0, 1, 2, 3]
    assert samples["type"].tolist() == ["augmented", "human", "human", "human"]


def test_a_right_answer_counts(run, untrained, tmp_path):
    samples = [json.loads(line) for line in (run / "results/demo/base-bf16/lmms/chartqa_samples.jsonl").open()]
    given = [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    charts = write_charts(tmp_path / "charts", [given[0], given[1], "wrong", given[3]])
    result = evaluate(untrained / "model", charts, "gemma3", tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "chartqa.json").read_text())
    assert [report[key] for key in ("relaxed_overall", "human", "augmented")] == pytest.approx([3 / 4, 2 / 3, 1])
    samples = pd.read_parquet(tmp_path / "chartqa_samples.parquet")
    assert samples.to_dict("list") == {
        "index": [0, 1, 2, 3],
        "type": ["augmented", "human", "human", "human"],
        "correct": [1, 1, 0, 1],
    }


def test_summary_and_card_hold_the_scores(run):
    summary = json.loads((run / "results/demo/summary.json").read_text())
    rows = {row["name"]: row["chartqa"] for row in summary["variants"]}
    assert [name for name, scores in rows.items() if scores] == VARIANTS
    report = json.loads((run / "results/demo/qat-int4/chartqa.json").read_text())
    qat = rows["qat-int4"]
    kept = report.keys() & qat.keys()
    assert {key: qat[key] for key in kept} == {key: report[key] for key in kept}
    assert qat["ci95"][0] <= report["relaxed_overall"] <= qat["ci95"][1]
    assert (qat["recovered"] is None) != qat["recovered_resolved"]
    card = (run / "results/demo/model_card.md").read_text()
    overall, human, augmented = (f"{100 * report[key]:.2f}%" for key in ("relaxed_overall", "human", "augmented"))
    (line,) = (line for line in card.splitlines() if line.startswith(f"| qat-int4 | {overall} ["))
    assert line.endswith(f" | {human} | {augmented} |")
    assert run_script("verify", run / "results/demo", cwd=run).returncode == 0


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


def command(checkpoint, charts, model, folder):
    options = {"checkpoint": checkpoint, "model": model, "dataset": charts, "batch-size": 1}
    options |= {"lmms-runs": folder / "lmms", "output": folder / "chartqa.json"}
    options |= {"samples": folder / "chartqa_samples.parquet"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return ["python", str(ROOT / "scripts" / "evaluate_chartqa.py"), *words]


def evaluate(*paths):
    return subprocess.run(command(*paths), capture_output=True, text=True, env=environment("lmms"))


def test_a_cancelled_job_leaves_no_copy_of_the_model(run, charts, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = command(run / "results/demo/base-int4/checkpoint", charts, "gemma3", tmp_path)
    process = subprocess.Popen(words, env=environment("lmms") | {"TMPDIR": str(scratch)})
    while process.poll() is None and not list(scratch.iterdir()):
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert list(scratch.iterdir()) == []


def test_no_results_are_one_line_with_the_last_words(untrained, charts, tmp_path):
    result = evaluate(untrained / "model", charts, "no_such_model", tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    log = tmp_path / "lmms" / "chartqa.log"
    assert last.startswith(f"error: lmms-eval: expected a file chartqa_samples.jsonl, found none; the end of {log}: ")
    assert "no_such_model" in last
    assert not (tmp_path / "chartqa.json").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"correct": [1, 1, 0, 1]}, []),
        ({"correct": [1, 1, 0, 0]}, ["relaxed_overall: expected 0.75", "human: expected 0.6666666666666666"]),
        (
            {"type": ["human"] * 4},
            ["human: expected 0.6666666666666666", "augmented: expected 1.0 of the answers, found None"],
        ),
        ({"index": [0, 1, 2, 2]}, ["questions: expected 4, each once"]),
    ],
)
def test_answers_that_do_not_give_the_figures_are_named(change, expected):
    rows = {"index": [0, 1, 2, 3], "type": ["augmented", "human", "human", "human"], "correct": [1, 1, 0, 1]} | change
    samples = chartqa_figures.table(pd.DataFrame(rows).to_dict("records"))
    report = {"questions": 4, "relaxed_overall": 3 / 4, "human": 2 / 3, "augmented": 1.0}
    found = chartqa_figures.misfits(samples, report)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))
