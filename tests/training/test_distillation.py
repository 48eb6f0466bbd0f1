"""Test the distillation loss: its formula, its computation in blocks, and which base it compares with."""

import math
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3ForConditionalGeneration

import calibrated
from int4_qat.checkpoint import heads
from int4_qat.checkpoint.heads import Head, Reading
from int4_qat.config.recipe import Recipe, Target
from int4_qat.engines import inference
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from int4_qat.training import collation, data, distillation, qat, run
from int4_qat.training.backends import transformers
from programs import INT4, RECIPE, seen, training_options

ALL = {"weight": 1.0, "tokens": "all", "temperature": 1.0}
TARGETS = get_args(Target)


def made_trainer(untrained, texts, folder, model=None, **changes):
    """Return a trainer of the stand-in whose adapters are far from zero, for a recipe with some changes."""
    recipe = Recipe(**RECIPE | {"distillation": ALL} | changes)
    options = training_options(untrained, texts, folder)
    if model:
        options = options._replace(model=model, base=untrained / "model")
    student = transformers.add_adapters(options.model, recipe, "cpu")
    torch.manual_seed(1)
    for layer in qat.lora_linears(student).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=2)
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    rows = data.tokenize(options.texts, tokenizer, recipe, folder)
    return transformers.make_trainer(student, tokenizer, rows, recipe, options)


def first_loss(trainer):
    """Return the first batch and its loss, as in the first step of a training."""
    ((batch,), labels) = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    return batch, trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=labels)


def whole_logits(untrained, trainer, batch):
    """Return the logits of the base and of the model for every state that has a next token."""
    tokens = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        base = inference.load_model(untrained / "model", torch.float32, "cpu")(**tokens).logits[:, :-1]
    return base, trainer.model(**tokens).logits[:, :-1]


def by_definition(untrained, trainer, batch):
    """Return KL(base || model) and the cross-entropy of each state, computed from whole logits, and two masks.

    The masks select the states that predict a token and those that predict a label.
    """
    p, q = (logits.softmax(-1) for logits in whole_logits(untrained, trainer, batch))
    following, mask = batch["labels"][:, 1:], batch["position_ids"][:, 1:] > 0
    kl, labelled = (p * (p / q).log()).sum(-1), following != -100
    cross_entropy = -q.log().gather(-1, following.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return kl, cross_entropy, mask, labelled


@pytest.mark.parametrize("changes", [{}, *(seen() | {"qat_target": target} for target in TARGETS)])
@pytest.mark.parametrize("distilled", [ALL, ALL | {"weight": 0.9}, ALL | {"tokens": "response", "weight": 0.9}])
def test_the_loss_is_the_formula_against_the_base(untrained, texts, tmp_path, monkeypatch, changes, distilled):
    monkeypatch.setattr(heads, "BLOCK_BYTES", 4 * 10_240 * 7)  # seven tokens
    trainer = made_trainer(untrained, texts, tmp_path, distillation=distilled, **changes)
    batch, loss = first_loss(trainer)
    kl, cross_entropy, mask, labelled = by_definition(untrained, trainer, batch)
    at, weight = mask if distilled["tokens"] == "all" else labelled, distilled["weight"]
    expected = weight * kl[at].mean() + (1 - weight) * cross_entropy[labelled].mean()
    assert kl[at].mean() > 5e-3
    torch.testing.assert_close(loss, expected)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, trained)
    for ours, theirs in zip(found, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_divergence_of_two_tokens_by_hand():
    def logits_of(states):
        return states

    head = SimpleNamespace(logits=logits_of, vocabulary=3)
    base, student = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    readings = [Reading(torch.stack([row, row + 5]), head) for row in (student, base)]
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(1 / 2)
    assert distillation.kl(*readings).item() == pytest.approx(2 * by_hand)
    # at temperature 1/2 the probabilities are squared and normalized
    p, q = torch.tensor([4, 1, 1]) / 6, torch.tensor([1, 1, 4]) / 6
    assert distillation.kl(*readings, temperature=0.5).item() == pytest.approx(2 * (p * (p / q).log()).sum().item())


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_compiled_loss_and_its_gradient_are_those_of_autograd(labelled, temperature):
    """They agree in bf16, and two graphs serve all block sizes and pairs of weights."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(distillation.loss_and_gradient, backend="aot_eager", fullgraph=True)
    for seed, tokens in enumerate((6, 6, 4, 5)):
        generator = torch.Generator().manual_seed(seed)
        logits, base = (3 * torch.randn(tokens, 50, generator=generator).to(torch.bfloat16) for _ in range(2))
        following = torch.randint(50, (tokens,), generator=generator)
        following[1] = -100
        weights = torch.rand(2, generator=generator) if labelled else torch.tensor([0.0, 0.7])
        given = logits.float().requires_grad_()
        p, q = ((each / temperature).softmax(-1) for each in (base.float(), given))
        cross_entropy = torch.nn.functional.cross_entropy(given, following, reduction="sum")
        expected = weights[1] * (p * (p / q).log()).sum() + weights[0] * cross_entropy
        (gradient,) = torch.autograd.grad(expected, given)
        loss, of_logits = compiled(logits, base, following if labelled else None, weights, temperature)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
        assert of_logits.dtype == torch.bfloat16
        torch.testing.assert_close(of_logits.float(), gradient, rtol=1e-2, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_a_temperature_scales_gradients_back(untrained, texts, tmp_path):
    """T² KL tends to half the variance of the logits' differences (Hinton et al. 2015); at T = 8 it is 0.3% off here.

    At T = 40 the probabilities are so similar that rounding in fp32 makes up a tenth of the KL.
    """
    trainer = made_trainer(untrained, texts, tmp_path, distillation=ALL | {"temperature": 8.0})
    batch, loss = first_loss(trainer)
    base, own = whole_logits(untrained, trainer, batch)
    differences = (base - own)[batch["position_ids"][:, 1:] > 0]
    assert loss.item() == pytest.approx(differences.var(-1).mean().item() / 2, rel=0.03)


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("distilled", [ALL, {"weight": 0.5, "tokens": "response", "temperature": 2.0}])
def test_accumulated_batches_are_one_step(untrained, texts, tmp_path, monkeypatch, distilled, accepts):
    """Each token counts equally, whichever batch it is in, for texts of different lengths and any class of models."""
    monkeypatch.setattr(Gemma3ForConditionalGeneration, "accepts_loss_kwargs", accepts, raising=False)
    weights = []
    for size, accumulated in ((8, 1), (2, 4)):
        changes = {"train_batch_size": size * accumulated, "gradient_accumulation_steps": accumulated, "max_steps": 2}
        trainer = made_trainer(untrained, texts, tmp_path, distillation=distilled, logging_steps=1, **changes)
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("distilled", [None, {"weight": 0.5, "tokens": "all", "temperature": 2.0}])
@pytest.mark.parametrize("changes", [{}, seen() | {"qat_target": "merged"}])
def test_a_step_in_parts_is_the_step(untrained, texts, tmp_path, monkeypatch, distilled, changes):
    taken = []
    for part in (8192, 60):
        more = {"max_steps": 2, "train_batch_size": 8, "logging_steps": 1}
        trainer = made_trainer(untrained, texts, tmp_path, distillation=distilled, **changes, **more)
        assert trainer.tokens_at_once == (collation.PART_OF_MERGED if changes else collation.PART)
        trainer.tokens_at_once = part
        rows, own = [], trainer.compute_loss
        monkeypatch.setattr(
            trainer,
            "compute_loss",
            lambda model, inputs, rows=rows, own=own, **options: (
                rows.append(inputs["input_ids"].shape) or own(model, inputs, **options)
            ),
        )
        trainer.train()
        logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        taken.append((rows, logged, [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]))
    (whole, losses, weights), (parts, part_losses, part_weights) = taken
    assert len(whole) == 2 < len(parts)
    assert max(rows * length for rows, length in parts) <= 60
    assert sum(rows * length for rows, length in parts) == sum(rows * length for rows, length in whole)
    assert part_losses == pytest.approx(losses, rel=1e-5)
    for one, other in zip(weights, part_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("packing", [True, False])
def test_cudnn_attends_only_to_rows_of_one_length(untrained, texts, tmp_path, monkeypatch, packing):
    """Packed rows all have one length; whole texts make batches of many shapes, each of which cuDNN would prepare."""
    allowed = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", allowed.append)
    made_trainer(untrained, texts, tmp_path, packing=packing)
    assert allowed == [packing]


def test_from_calibrated_weights_the_base_is_still_the_base(untrained, texts, tmp_path):
    folder = calibrated.write(untrained / "model", tmp_path / "calibrated", INT4)
    changes = seen() | {"qat_target": "merged"}
    trainer = made_trainer(untrained, texts, tmp_path, model=folder, **changes)
    batch, loss = first_loss(trainer)
    kl, _, mask, _ = by_definition(untrained, trainer, batch)
    torch.testing.assert_close(loss, kl[mask].mean())
    options = training_options(untrained, texts, tmp_path)._replace(model=folder)
    with pytest.raises(InputError, match=r"^--base: expected a folder with the base, since .* is calibrated"):
        run.train(options, Recipe(**RECIPE | changes | {"distillation": ALL}), transformers)


def test_logits_have_the_caps_and_scales_of_the_model():
    """The model of this test caps its logits."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = Gemma2Config(**sizes, **heads, final_logit_softcapping=0.5, initializer_range=1.0)
    model = AutoModelForCausalLM.from_config(config).eval()
    batch = {"input_ids": torch.randint(3, 64, (1, 12))}
    states = distillation.last_hidden_states(model, model, batch)
    capped = model(**batch).logits[0]
    assert 0.4 < capped.abs().max() <= 0.5
    torch.testing.assert_close(Head(model).logits(states[0]), capped)
