"""Test what a training learns from, and what it refuses."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from int4_qat.config.recipe import Recipe
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, turns
from int4_qat.training import data, run
from int4_qat.training.backends import transformers
from programs import RECIPE, finetune_options, run_script, training_options


def test_tokens_and_labels_are_the_cards(untrained, texts, tmp_path):
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    rows = data.tokenize({"questions": texts}, tokenizer, Recipe(**RECIPE), tmp_path).train
    for text, row in zip(pq.read_table(texts)["text"].to_pylist(), rows, strict=True):
        # The expectation is independent: two halves of the text, tokenized separately. Neither text nor an eos follows
        # the newline.
        head, answer = text.split("<start_of_turn>model\n")
        head_tokens = tokenizer(head + "<start_of_turn>model\n")["input_ids"]
        answer_tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert head_tokens[0] == tokenizer.bos_token_id
        assert row["input_ids"] == head_tokens + answer_tokens
        assert row["labels"] == [-100] * len(head_tokens) + answer_tokens
        assert tokenizer.decode(answer_tokens).endswith(".<end_of_turn>\n")


def test_labels_of_several_turns():
    user, model = [1, 2], [1, 3]
    tokens = [0, 1, 2, 9, 1, 3, 7, 8, 1, 2, 9, 1, 3, 6]
    masked = -100
    expected = [masked] * 6 + [7, 8] + [masked] * 5 + [6]
    assert turns.response_labels(tokens, user, model) == expected


def test_a_row_without_an_answer_is_named(untrained, texts, tmp_path):
    rows = pq.read_table(texts)["text"].to_pylist()[:3]
    rows[1] = rows[1].split("<start_of_turn>model")[0]
    broken = tmp_path / "broken.parquet"
    pq.write_table(pa.table({"text": rows, "subject": ["anatomy"] * 3}), broken)
    result = run_script("finetune", *finetune_options(untrained, broken, tmp_path))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "broken.parquet, row 2: expected '" in last
    assert not (tmp_path / "adapter").exists()


def test_a_parameter_without_gradient_is_an_error(untrained, texts, tmp_path, monkeypatch):
    recipe = Recipe(**RECIPE)
    model = transformers.add_adapters(untrained / "model", recipe, "cpu")
    unused = torch.nn.Parameter(torch.ones(3))
    model.register_parameter("unused", unused)
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    rows = data.tokenize({"questions": texts}, tokenizer, recipe, tmp_path)
    options = training_options(untrained, texts, tmp_path)
    with pytest.raises(InputError, match=r"expected a gradient for the trainable .*unused, found none"):
        transformers.make_trainer(model, tokenizer, rows, recipe, options).train()


def test_a_training_that_diverges_says_so(untrained, texts, tmp_path):
    result = run_script("finetune", *finetune_options(untrained, texts, tmp_path, learning_rate=1e30, warmup_steps=0))
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: finetune: expected a finite loss at step \d+, found nan; lower learning_rate",
        result.stderr.splitlines()[-1],
    )
    assert not (tmp_path / "adapter").exists()


def test_a_report_that_is_not_installed_is_one_line(untrained, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "get_available_reporting_integrations", lambda: ["mlflow"])
    options = training_options(untrained, texts, tmp_path)._replace(report_to="wandb")
    with pytest.raises(InputError) as caught:
        run.train(options, Recipe(**RECIPE), transformers)
    assert str(caught.value) == "finetune.report_to: expected none or an installed service (mlflow), found wandb"
    assert not options.checkpoints.exists()


def test_a_training_within_its_warm_up_is_one(untrained, texts, tmp_path):
    result = run_script("finetune", *finetune_options(untrained, texts, tmp_path, max_steps=2, warmup_steps=5))
    assert result.returncode == 0, result.stderr
