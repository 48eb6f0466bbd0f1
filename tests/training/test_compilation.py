"""Test that a compiled training has the same losses; only dynamo's part runs here, without a GPU's kernels."""

import pytest
import torch

from int4_qat.config.recipe import Recipe
from int4_qat.tokenizer import tokenization
from int4_qat.training import compilation, data
from int4_qat.training.backends import transformers
from programs import RECIPE, seen, training_options

ALL = {"weight": 0.9, "tokens": "all", "temperature": 1.0}
MERGED = seen() | {"qat_target": "merged"}
TRAININGS = {
    "lora": {},
    "base+lora_a": seen() | {"qat_target": "base+lora_a"},
    "merged": MERGED,
    "distilled": MERGED | {"distillation": ALL, "grid_learning_rate": 1e-3},
}


def losses(untrained, texts, folder, changes, compiled):
    """Return the losses of three steps, and the layers that were compiled."""
    recipe = Recipe(**RECIPE | {"max_steps": 3} | changes)
    options = training_options(untrained, texts, folder)
    model = transformers.add_adapters(options.model, recipe, "cpu")
    tokenizer = tokenization.load_tokenizer(options.model)
    rows = data.tokenize(options.texts, tokenizer, recipe, folder)
    trainer = transformers.make_trainer(model, tokenizer, rows, recipe, options)
    layers = compilation.compile_layers(model, recompute=False, backend="aot_eager") if compiled else []
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], layers


@pytest.mark.parametrize("training", TRAININGS)
def test_a_compiled_training_has_the_same_losses(untrained, texts, tmp_path, monkeypatch, training):
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", torch._dynamo.config.recompile_limit)  # restored
    expected, _ = losses(untrained, texts, tmp_path / "plain", TRAININGS[training], compiled=False)
    torch._dynamo.utils.counters.clear()
    found, layers = losses(untrained, texts, tmp_path / "compiled", TRAININGS[training], compiled=True)
    broken = torch._dynamo.utils.counters["graph_break"]
    assert bool(broken) == (training == "base+lora_a"), "merged linears stay in the graph of their layer"
    assert layers == [f"base_model.model.model.language_model.layers.{number}" for number in range(3)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert found == pytest.approx(expected, rel=1e-5)
