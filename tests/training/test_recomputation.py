"""Test that compiled layers keep only their inputs for the backward pass, with the same losses; without a GPU."""

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from int4_qat.config.recipe import Recipe
from int4_qat.tokenizer import tokenization
from int4_qat.training import compilation, data, recomputation
from int4_qat.training.backends import transformers
from programs import RECIPE, training_options
from test_compilation import TRAININGS

DROPOUT = {"lora_dropout": 0.5}


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    torch._dynamo.reset()
    recomputation.report.cache_clear()
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", torch._dynamo.config.recompile_limit)  # restored


def trainer_of(untrained, texts, folder, changes, device="cpu"):
    recipe = Recipe(**RECIPE | {"max_steps": 3} | changes)
    options = training_options(untrained, texts, folder)
    model = transformers.add_adapters(options.model, recipe, "cpu")
    tokenizer = tokenization.load_tokenizer(options.model)
    rows = data.tokenize(options.texts, tokenizer, recipe, folder)
    return transformers.make_trainer(model, tokenizer, rows, recipe, options._replace(device=device))


def losses(trainer):
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def place_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def places_in(tree) -> set[int]:
    return {place_of(leaf) for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


def watch_kept_bytes(model) -> list[int]:
    """Return a list that gets the bytes each call of a layer keeps, beside its arguments and the model's tensors."""
    kept = []
    known = places_in([[vars(module), list(module.parameters()), list(module.buffers())] for module in model.modules()])

    def watched(forward):
        def call(*args, **kwargs):
            found, given = {}, places_in((args, kwargs))

            def pack(tensor):
                found[place_of(tensor)] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output = forward(*args, **kwargs)
            kept.append(sum(size for place, size in found.items() if place not in given | known))
            return output

        return call

    for module in model.modules():
        if compilation.is_layer(module):
            module.forward = watched(module.forward)
    return kept


@pytest.mark.parametrize("training", TRAININGS)
def test_layers_keep_their_inputs_alone_with_the_same_losses(untrained, texts, tmp_path, capsys, training):
    expected = losses(trainer_of(untrained, texts, tmp_path / "plain", TRAININGS[training]))
    trainer = trainer_of(untrained, texts, tmp_path / "compiled", TRAININGS[training])
    compilation.compile_layers(trainer.model, recompute=True, backend="aot_eager")
    kept = watch_kept_bytes(trainer.model)
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    assert kept
    assert not any(kept)
    reports = re.findall("checkpointed around.*", capsys.readouterr().out)
    assert bool(reports) == (training == "base+lora_a"), "the compiler follows all others"


def test_without_it_layers_keep_more(untrained, texts, tmp_path):
    trainer = trainer_of(untrained, texts, tmp_path, {})
    compilation.compile_layers(trainer.model, recompute=False, backend="aot_eager")
    kept = watch_kept_bytes(trainer.model)
    trainer.train()
    assert all(kept)


def test_a_layer_with_dropout_has_the_same_random_numbers_in_both_passes(untrained, texts, tmp_path, capsys):
    expected = losses(trainer_of(untrained, texts, tmp_path / "plain", DROPOUT))
    trainer = trainer_of(untrained, texts, tmp_path / "compiled", DROPOUT)
    compilation.compile_layers(trainer.model, recompute=True, backend="aot_eager")
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    assert capsys.readouterr().out.count("it draws random numbers") == 1


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("layers", [[], ["layers.0"]])
def test_layers_that_recompute_are_not_checkpointed_as_well(
    untrained, texts, tmp_path, monkeypatch, layers, checkpointing
):
    asked = []
    monkeypatch.setattr(compilation, "compile_layers", lambda _, recompute: asked.append(recompute) or layers)
    trainer = trainer_of(untrained, texts, tmp_path, {"gradient_checkpointing": checkpointing}, device="cuda")
    assert asked == [checkpointing]
    assert trainer.args.gradient_checkpointing == (checkpointing and not layers)


class Layer(torch.nn.Module):
    """A layer whose inner values the backward pass needs."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x).sin().sin()


class Cut(Layer):
    """A layer that the compiler cannot follow as a whole, since a shape depends on values."""

    def forward(self, x):
        y = super().forward(x)
        return y[: 1 + int(y.detach().abs().sum().item() > 0)]


class Dropping(Layer):
    def forward(self, x):
        return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))


def kept_bytes(layer, x):
    """Assert that a layer has the gradients that it has uncompiled; return the bytes it keeps for them."""
    torch.manual_seed(0)
    type(layer).forward(layer, x).sum().backward()
    expected, layer.inner.weight.grad = layer.inner.weight.grad, None
    kept, known = {}, places_in([x, list(layer.parameters())])

    def pack(tensor):
        kept[place_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(layer.inner.weight.grad, expected)
    layer.inner.weight.grad = None
    return sum(size for place, size in kept.items() if place not in known)


def recomputed(kind, count=1):
    layers = [kind() for _ in range(count)]
    for layer in layers:
        layer.forward = recomputation.Recomputed(layer, "aot_eager")
    return layers


def test_layers_of_more_shapes_than_are_compiled_still_recompute(monkeypatch, capsys):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(torch._dynamo.config, "automatic_dynamic_shapes", False)
    layers = recomputed(Layer, 3)
    with torch.no_grad():
        for length in (2, 3, 4):
            layers[0](torch.randn(length, 4))
    assert not any(kept_bytes(layer, torch.randn(length, 4)) for length in (3, 4, 5) for layer in layers)
    assert capsys.readouterr().out.count("checkpointed around") == 1


def test_a_layer_that_the_compiler_cannot_follow_recomputes(capsys):
    assert not kept_bytes(recomputed(Cut)[0], torch.randn(3, 4))
    assert "checkpointed around" in capsys.readouterr().out


def test_layers_share_what_is_compiled():
    torch._dynamo.utils.counters.clear()
    for layer in recomputed(Layer, 3):
        assert not kept_bytes(layer, torch.randn(3, 4))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_dropout_is_seen_in_training_after_evaluation(capsys):
    (layer,) = recomputed(Dropping)
    assert not kept_bytes(layer.eval(), torch.randn(3, 4))
    assert not kept_bytes(layer.train(), torch.randn(3, 4))
    assert "it draws random numbers" in capsys.readouterr().out


def test_data_parallel_does_not_split_a_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", torch._dynamo.config.optimize_ddp)  # restored
    compilation.compile_layers(torch.nn.Sequential(), recompute=True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        stack = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4)))
        (layer,) = recomputed(lambda: stack)
        kept, known = {}, places_in(list(stack.parameters()))
        x = torch.randn(64, 512)
        replicated = torch.nn.parallel.DistributedDataParallel(stack)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({place_of(t): t}) or t, lambda t: t):
            replicated(x)
        assert not kept.keys() - known - places_in(x)
        assert layer.forward.obstacle is None
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"])
def test_attention_without_dropout_draws_no_random_numbers_on_a_gpu(kernel):
    heads = torch.randn(1, 2, 16, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    before = recomputation.generator_states(on_gpu=True)
    with sdpa_kernel(getattr(SDPBackend, kernel)):
        assert not recomputation.draws_random_numbers(scaled_dot_product_attention, heads, heads, heads)
        scaled_dot_product_attention(heads, heads, heads).sum().backward()
        assert all(map(torch.equal, before, recomputation.generator_states(on_gpu=True)))
        assert recomputation.draws_random_numbers(scaled_dot_product_attention, heads, heads, heads, dropout_p=0.1)
