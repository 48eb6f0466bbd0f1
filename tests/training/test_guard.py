"""Test the divergence on held-out rows: how it is measured, and that training must not end worse than it began."""

import math
import signal

import pandas as pd
import pytest
import torch

import finetune
from configs import changed
from int4_qat.config import recipes
from int4_qat.config.recipe import Recipe
from int4_qat.engines import inference
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from int4_qat.training import callbacks, data, log_table, run
from int4_qat.training.backends import transformers
from programs import RECIPE, finetune_options, run_in_process, run_script, seen, training_options

MEASURED = seen() | {"qat_target": "merged", "eval_steps": 5, "max_steps": 12}
DISTILLED = {"distillation": {"weight": 1.0, "tokens": "all", "temperature": 1.0}}


@pytest.mark.parametrize("target", ["merged", "base"])
def test_it_is_the_mean_over_the_tokens_of_held_out_rows(untrained, texts, tmp_path, target):
    recipe = Recipe(**RECIPE | MEASURED | {"qat_target": target})
    options, tokenizer = training_options(untrained, texts, tmp_path), tokenization.load_tokenizer(untrained / "model")
    rows = data.tokenize(options.texts, tokenizer, recipe, tmp_path)
    model = transformers.add_adapters(options.model, recipe, "cpu")
    trainer = transformers.make_trainer(model, tokenizer, rows, recipe, options)
    base, total, tokens = inference.load_model(options.model, torch.float32, "cpu"), 0.0, 0
    with torch.no_grad():
        for row in rows.held_out:
            ids = torch.tensor([row["input_ids"]])
            expected, found = (each(input_ids=ids).logits[0, :-1].log_softmax(-1) for each in (base, model.eval()))
            total += (expected.exp() * (expected - found)).sum().item()
            tokens += len(expected)
    assert trainer.held_out_kl() == pytest.approx(total / tokens, rel=1e-3)
    assert total > 0.1


def test_the_table_has_it_from_the_start_to_the_end(untrained, texts, tmp_path):
    result = run_script("finetune", *finetune_options(untrained, texts, tmp_path, **MEASURED | DISTILLED))
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "training.csv", index_col="step")
    assert table.index.tolist() == list(range(13))
    assert table["held_out_kl"].dropna().index.tolist() == [0, 5, 10, 12]
    assert table["loss"].dropna().index.tolist() == list(range(1, 13))
    assert table["held_out_kl"][12] < table["held_out_kl"][0]


def test_a_training_that_hurts_is_refused_or_allowed_without_another_one(untrained, texts, tmp_path):
    changes = MEASURED | {"learning_rate": 0.5}
    result = run_script("finetune", *finetune_options(untrained, texts, tmp_path, **changes))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: finetune: expected a held-out KL of at most ")
    assert last.endswith("after 12 steps; lower learning_rate, or set allow_worse")
    assert not (tmp_path / "adapter").exists()
    result = run_script("finetune", *finetune_options(untrained, texts, tmp_path, **changes), "--allow-worse", 1)
    assert result.returncode == 0, result.stderr
    assert "checkpoint-12" in result.stdout
    table = pd.read_csv(tmp_path / "training.csv", index_col="step")
    assert table["held_out_kl"][12] > table["held_out_kl"][0]


def test_a_resumed_training_is_measured_where_it_would_have_been(untrained, texts, tmp_path, monkeypatch):
    def stop(self, args, state, control, **kwargs):
        if state.global_step == 6:
            signal.raise_signal(signal.SIGTERM)

    options = finetune_options(untrained, texts, tmp_path, **MEASURED | DISTILLED)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StepTable, "on_step_begin", stop)
        with pytest.raises(InputError, match="stopped by SIGTERM after step 7"):
            run_in_process(finetune, patch, *options)
    assert run_script("finetune", *options).returncode == 0
    table = pd.read_csv(tmp_path / "training.csv", index_col="step")
    assert table["held_out_kl"].dropna().index.tolist() == [0, 5, 10, 12]


@pytest.mark.parametrize(
    ("log", "worse"),
    [
        ([(0, 0.2), (5, 0.1), (9, 0.3)], "0.3000"),
        ([(0, 0.2), (9, math.nan)], "nan"),
        ([(0, 0.2), (9, 0.2)], None),
        ([], None),
    ],
)
def test_the_end_counts_against_the_start(log, worse):
    rows = [{"step": step, "held_out_kl": value} for step, value in log] + [{"step": 3, "loss": 1.0}]
    if worse:
        with pytest.raises(InputError) as caught:
            log_table.refuse_worse(rows)
        assert f"at most 0.2000 nats per token, as at the start, found {worse} after 9 steps" in str(caught.value)
    else:
        log_table.refuse_worse(rows)


def test_without_a_quantization_nothing_is_held_out(untrained, texts, tmp_path):
    """Without a quantization, training begins at the base, so the divergence from it can only grow."""
    config = changed(["finetune", "eval_steps"], 10)
    assert recipes.recipe_of(config, "lora")["eval_steps"] is None
    assert recipes.recipe_of(config, "qat")["eval_steps"] == 10
    options = training_options(untrained, texts, tmp_path)
    with pytest.raises(InputError, match=r"eval_steps: expected null in an arm without a quantization, found 10$"):
        run.train(options, Recipe(**RECIPE | {"eval_steps": 10}), transformers)
