"""Test that changes after a run are found, by a file's hash or because a number no longer follows from the files."""

import base64
import json
import re
import subprocess

import pandas as pd
import pytest

import record_provenance
from int4_qat.results import verification
from int4_qat.system import files
from int4_qat.system.errors import InputError
from programs import run_script
from test_model_card import change
from workflows import planned


def forge(results, path):
    """Record the hash of a changed file, so that the file passes as the recorded one."""
    name = f"results/demo/{path}"
    change(results / "provenance.json", "files", name, value=files.sha256.__wrapped__(results / path))


def test_a_finished_run_is_verified(finished):
    assert verification.problems(finished) == []


@pytest.mark.parametrize(
    "path",
    ["summary.json", "summary.csv", "plots/memory.png", "train.parquet", "qat/adapter/adapter_model.safetensors"],
)
def test_one_more_byte_is_found(finished, path):
    (finished / path).write_bytes((finished / path).read_bytes() + b" ")
    assert verification.problems(finished) == [f"results/demo/{path}: expected the recorded file, found another"]


def test_what_is_missing_and_changed_is_a_line_each(finished):
    (finished / "qat-int4" / "memory.json").unlink()
    mmlu = finished.parents[1] / "resources" / "mmlu" / "test.parquet"
    mmlu.write_bytes(mmlu.read_bytes() + b" ")
    result = run_script("verify", finished)
    assert result.returncode == 1
    assert sorted(result.stderr.splitlines()) == [
        f"{finished}: resources/mmlu/test.parquet: expected the recorded file, found another",
        f"{finished}: results/demo/qat-int4/memory.json: expected a file, found none",
    ]


def test_an_unfinished_run_is_one_line(tmp_path):
    result = run_script("verify", tmp_path)
    expected = f"error: {tmp_path}: expected the results of a finished run, found no provenance.json\n"
    assert (result.returncode, result.stderr) == (1, expected)


def test_results_alone_say_what_was_not_verified(finished):
    alone = finished.rename(finished.parents[2] / "alone")
    result = run_script("verify", alone)
    assert (result.returncode, result.stderr) == (0, "")
    assert "every number follows from them\nnot verified, since the files are missing" in result.stdout


def test_a_number_of_the_card_that_was_touched_up(finished):
    card = finished / "model_card.md"
    card.write_text(re.sub(r"(\| \*\*qat-int4\*\* \| )\d+", r"\g<1>99", card.read_text()))
    forge(finished, "model_card.md")
    (problem,) = verification.problems(finished)
    assert "expected '| **qat-int4** | " in problem


def test_a_number_of_the_summary_that_was_touched_up(finished):
    change(finished / "summary.json", "comparisons", 0, "mcnemar_p", value=1e-9)
    forge(finished, "summary.json")
    assert verification.problems(finished)[0].startswith("summary.json: comparisons[0].mcnemar_p: expected ")


def test_an_accuracy_that_the_answers_do_not_give(finished):
    change(finished / "qat-int4" / "mmlu.json", "accuracy", value=0.5)
    forge(finished, "qat-int4/mmlu.json")
    assert verification.problems(finished)[0].startswith("qat-int4/mmlu.json: expected accuracy")


def test_a_divergence_that_the_windows_do_not_give(finished):
    change(finished / "qat-int4" / "divergence.json", "texts", "families", "kl", value=0.01)
    forge(finished, "qat-int4/divergence.json")
    (problem,) = verification.problems(finished)
    samples = finished / "qat-int4" / "divergence_samples.parquet"
    assert problem.startswith(f"{samples}: families_kl: expected 0.01, as in divergence.json, found ")


def test_answers_that_their_likelihoods_do_not_give(finished):
    path = finished / "qat-int4" / "mmlu_samples.parquet"
    samples = pd.read_parquet(path)
    samples["correct"] = True
    samples.to_parquet(path)
    forge(finished, "qat-int4/mmlu_samples.parquet")
    assert verification.problems(finished)[0].startswith("qat-int4/mmlu.json: expected accuracy")


def test_a_result_is_followed_back_to_raw_data_and_programs(small_run):
    recorded = json.loads((small_run.directory / "results" / "demo" / "provenance.json").read_text())
    waiting, found = ["results/demo/model_card.md"], set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += recorded["results"].get(name, {"inputs": []})["inputs"]
    assert {"scripts/finetune.py", "scripts/int4_qat/quantization/int4.py", "resources/mmlu/test.parquet"} <= found
    assert str(small_run.standin / "model" / "model.safetensors") in found
    adapter = recorded["results"]["results/demo/qat/adapter"]
    assert (adapter["rule"], adapter["started"] <= adapter["finished"]) == ("finetune", True)
    assert '"learning_rate": 0.003' in adapter["command"]
    assert recorded["workflow"] == {"commit": None, "clean": None}  # the workflow is a copy without git
    summary = json.loads((small_run.directory / "results" / "demo" / "summary.json").read_text())
    sources = [f"results/demo/{source}" for row in summary["variants"] for source in row["source"].values()]
    assert {*sources, *summary["source"].values()} <= recorded["files"].keys()


def test_a_new_commit_runs_nothing_again(small_run):
    git = ["git", "-C", small_run.workflow, "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    assert planned(small_run.snakemake("--dry-run")) == {}
    found = record_provenance.commit(small_run.workflow)
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])
    assert found["clean"]


def test_a_result_of_another_input_is_stale():
    hashes = {"data": {"data": "b" * 64}, "result": {"result": "c" * 64}}
    lineage = {"data": None, "result": {"input_checksums": {"data": f"sha256:{'a' * 64}"}}}
    with pytest.raises(InputError, match="result: expected a result of the present data, found one of another"):
        record_provenance.check_stale(lineage, hashes)
    record_provenance.check_stale({"result": {"input_checksums": {"data": f"sha256:{'b' * 64}"}}}, hashes)


def test_a_result_without_a_record_is_an_error():
    with pytest.raises(InputError, match=r"results/demo/summary\.json: expected Snakemake's record"):
        record_provenance.follow(["results/demo/summary.json"], {})


def test_a_broken_record_of_something_else_is_none_of_its_business(tmp_path):
    for name, content in {"results/other/summary.json": "", "results/demo/summary.json": '{"input": []}'}.items():
        (tmp_path / base64.urlsafe_b64encode(name.encode()).decode()).write_text(content)
    (tmp_path / ".nfs0001").touch()
    lineage = record_provenance.follow(["results/demo/summary.json"], record_provenance.find_records(tmp_path))
    assert lineage == {"results/demo/summary.json": {"input": []}}
