"""Test the tasks of docs/tasks.md end to end, from a data set in the Hub's layout to figures and samples."""

import functools
import json
import math
import re

import pandas as pd
import pytest
import torch
from lm_eval.api import metrics
from lm_eval.tasks import TaskManager
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import check_task
import download_dataset
import evaluate_task
import families
import task_data
from int4_qat.evaluation import task_harness
from int4_qat.results import task_metrics
from int4_qat.system import files
from int4_qat.system.errors import InputError
from programs import run_in_process

pytestmark = pytest.mark.slow

CONTEXT = 2048
KNOWN = functools.cache(TaskManager)
EASY = {"train": 2, "validation": 2, "test": 12}


@pytest.fixture
def follow(llama, tmp_path, monkeypatch):
    """Return a function that imports a data set, checks and runs a task on it, and returns check, report, samples."""

    # lm-eval resamples 100,000 times for the standard error of a perplexity or an F1, which takes minutes.
    monkeypatch.setattr(metrics, "bootstrap_stderr", lambda *_, **__: 0.25)
    monkeypatch.setattr(task_harness, "TaskManager", KNOWN)  # reads lm-eval's thousands of files only once

    def follow(source, task, model=llama, num_fewshot=0, limit=None, batch_size=4):
        dataset = tmp_path / "resources" / task
        files.remove(dataset)  # as Snakemake does before a job
        run_in_process(download_dataset, monkeypatch, "--source", source, "--output", dataset)
        asked = ["--task", task, "--dataset", dataset, "--num-fewshot", num_fewshot]
        run_in_process(check_task, monkeypatch, *asked, "--output", tmp_path / "checked.json")
        output, samples = tmp_path / f"{task}.json", tmp_path / f"{task}_samples.parquet"
        asked += ["--limit", limit] if limit else []
        asked += ["--engine", "last_position", "--checkpoint", model, "--batch-size", batch_size, "--dtype", "float32"]
        run_in_process(evaluate_task, monkeypatch, *asked, "--output", output, "--samples", samples)
        checked, report = (json.loads(path.read_text()) for path in (tmp_path / "checked.json", output))
        kinds = {
            name: {key: metric[key] for key in metric if key not in ("value", "stderr")}
            for name, metric in report["metrics"].items()
        }
        assert checked["metrics"] == kinds
        return checked, report, pd.read_parquet(samples)

    return follow


def log_likelihood(model, tokenizer, text):
    """Return a text's log-likelihood in float64, after bos or, where there is none, eos, window by window."""
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    tokens = [prefix, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    total = 0.0
    for begin in range(1, len(tokens), CONTEXT):
        end = min(begin + CONTEXT, len(tokens))
        start = max(0, end - CONTEXT - 1)  # the last window is as long as the others, and overlaps
        inputs = torch.tensor([tokens[start : end - 1]])
        log_probabilities = model(inputs).logits[0].double().log_softmax(-1)
        predicted = torch.tensor(tokens[begin:end])
        total += log_probabilities[begin - 1 - start :].gather(1, predicted[:, None]).sum().item()
    return total


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_wikitext_is_an_independent_perplexity_with_one_bos(follow, untrained, tmp_path, family):
    """The last page is longer than the context."""
    folder = families.write(family, untrained / "model", tmp_path / family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pages = [*task_data.pages(90, 3), *task_data.pages(1500, 1)]
    assert [len(tokenizer(page)["input_ids"]) > CONTEXT for page in pages] == [False, False, False, True]
    source = task_data.wikitext(tmp_path / "wikitext", pages)
    checked, report, samples = follow(source, "wikitext", model=folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    totals = [log_likelihood(model, tokenizer, wikitext_detokenizer({"page": page})) for page in pages]
    words, sizes = sum(len(re.split(r"\s+", page)) for page in pages), sum(len(page.encode()) for page in pages)
    expected = {
        "word_perplexity,none": math.exp(-sum(totals) / words),
        "byte_perplexity,none": math.exp(-sum(totals) / sizes),
        "bits_per_byte,none": -sum(totals) / sizes / math.log(2),
    }
    assert {name: metric["value"] for name, metric in report["metrics"].items()} == pytest.approx(expected, rel=1e-5)
    assert [metric["higher_is_better"] for metric in report["metrics"].values()] == [False] * 3
    aggregations = {name: metric["aggregation"] for name, metric in checked["metrics"].items()}
    assert aggregations == {
        "word_perplexity,none": "weighted_perplexity",
        "byte_perplexity,none": "weighted_perplexity",
        "bits_per_byte,none": "bits_per_byte",
    }
    values = samples[samples["metric"] == "bits_per_byte,none"]
    assert values["document"].tolist() == [0, 1, 2, 3]
    assert values["value"].tolist() == pytest.approx(totals, rel=1e-5)
    assert values["weight"].tolist() == [len(page.encode()) for page in pages]
    assert (report["questions"], report["prompts_over_max_length"]) == (4, 1)


def test_arc_easy(follow, untrained, tmp_path):
    source = task_data.arc(tmp_path / "arc", "ARC-Easy", task_data.questions(untrained), EASY)
    _, report, samples = follow(source, "arc_easy", limit=10)
    assert report["metrics"].keys() == {"acc,none", "acc_norm,none"}
    for name, metric in report["metrics"].items():
        rows = samples[samples["metric"] == name]
        assert metric["value"] == pytest.approx(rows["value"].mean())
        assert set(rows["value"]) <= {0, 1}
        assert rows["document"].tolist() == list(range(10))
        assert (metric["higher_is_better"], metric["aggregation"]) == (True, "mean")


@pytest.mark.parametrize("by_size", [True, False])
def test_mmlu_continuation_pools_its_members_as_it_says(follow, untrained, tmp_path, monkeypatch, by_size):
    """The members of this group of groups have one or two questions, so that the kind of weighting shows."""
    source = task_data.mmlu_by_subject(tmp_path / "mmlu", untrained)
    first = sorted(source.glob("*/test-*.parquet"))[:30]
    for path in first:
        pd.read_parquet(path)[:1].to_parquet(path)
    load = task_harness.load

    def load_otherwise(*arguments):
        loaded = load(*arguments)
        for group in loaded.groups.values():
            group.aggregate_metric_list[0].weight_by_size = by_size
        return loaded

    monkeypatch.setattr(task_harness, "load", load_otherwise)
    _, report, samples = follow(source, "mmlu_continuation", num_fewshot=1, batch_size=16)
    assert list(report["metrics"]) == ["acc,none"]
    rows = samples[samples["metric"] == "acc,none"]
    of_members = rows.groupby("member")["value"].mean()
    assert len(of_members) == 57
    expected = rows["value"].mean() if by_size else of_members.mean()
    assert abs(rows["value"].mean() - of_members.mean()) > 1e-6
    assert report["metrics"]["acc,none"]["value"] == pytest.approx(expected)
    assert report["metrics"]["acc,none"]["weight_by_size"] is by_size
    assert report["metrics"]["acc,none"]["higher_is_better"] is True
    assert {name: len(tasks) for name, tasks in report["groups"].items()} == {
        "mmlu_continuation": 57,
        "mmlu_continuation::stem": 19,
        "mmlu_continuation::other": 13,
        "mmlu_continuation::social sciences": 12,
        "mmlu_continuation::humanities": 13,
    }
    assert report["questions"] == len(rows) == 84
    assert task_metrics.misfits(samples, report) == []


def test_two_filters_of_a_generated_answer_are_two_metrics(follow, tmp_path):
    _, report, samples = follow(task_data.gsm8k(tmp_path / "gsm8k"), "gsm8k", num_fewshot=1, limit=2)
    assert list(report["metrics"]) == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert samples.groupby("metric").size().to_dict() == dict.fromkeys(report["metrics"], 2)


def test_a_perplexity_of_documents(follow, tmp_path):
    source = task_data.lambada(tmp_path / "lambada", task_data.pages(30, 3))
    _, report, samples = follow(source, "lambada_openai")
    found = report["metrics"]["perplexity,none"]
    assert (found["higher_is_better"], found["aggregation"]) == (False, "perplexity")
    values = samples[samples["metric"] == "perplexity,none"]["value"]
    assert found["value"] == pytest.approx(math.exp(-values.mean()))
    assert report["metrics"]["acc,none"]["higher_is_better"] is True


def test_a_metric_that_is_no_function_of_documents_has_no_rows(follow, tmp_path):
    checked, report, samples = follow(task_data.mrpc(tmp_path / "mrpc"), "mrpc")
    assert {name: metric["aggregation"] for name, metric in checked["metrics"].items()} == {
        "acc,none": "mean",
        "f1,none": "f1",
    }
    assert 0 <= report["metrics"]["f1,none"]["value"] <= 1
    assert set(samples["metric"]) == {"acc,none"}


def test_samples_that_do_not_give_the_figures_end_the_program(follow, tmp_path, monkeypatch):
    source = task_data.mrpc(tmp_path / "mrpc")
    rows_of = evaluate_task.rows_of
    monkeypatch.setattr(evaluate_task, "rows_of", lambda *arguments: list(rows_of(*arguments))[1:])
    with pytest.raises(
        InputError, match=r"^evaluation\.tasks: mrpc: expected acc,none [0-9.]+ of its documents, found"
    ):
        follow(source, "mrpc")
    assert not (tmp_path / "mrpc.json").exists()
    assert not (tmp_path / "mrpc_samples.parquet").exists()


def test_two_runs_give_the_same_bytes(follow, untrained, tmp_path):
    source = task_data.arc(tmp_path / "arc", "ARC-Easy", task_data.questions(untrained), EASY)
    found = []
    for _ in range(2):
        follow(source, "arc_easy", limit=4)
        found.append([(tmp_path / name).read_bytes() for name in ("arc_easy.json", "arc_easy_samples.parquet")])
    assert found[0] == found[1]
