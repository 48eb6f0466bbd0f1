"""Test texts side by side in rows: which tokens do not count, and that no text sees another, in any family."""

import random

import pytest
import torch
import transformers

from families import FAMILIES, SIZES
from int4_qat.config.recipe import Recipe
from int4_qat.tokenizer import tokenization
from int4_qat.training import collation, data, distillation
from int4_qat.training.backends import transformers as backend
from programs import RECIPE, training_options

VOCABULARY = 1024
DTYPES = [torch.float32, torch.bfloat16]


def model_of(config_class, values, dtype=torch.float32):
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**values)
    auto = "AutoModelForImageTextToText" if hasattr(config, "vision_config") else "AutoModelForCausalLM"
    return getattr(transformers, auto).from_config(config, dtype=dtype)


def texts_of(lengths, seed=0):
    """Return examples of random tokens, the last three of which are labels."""
    draw = random.Random(seed)
    ids = [[draw.randrange(10, VOCABULARY) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": [-100] * (len(row) - 3) + row[-3:]} for row in ids]


def test_rows_are_filled():
    lengths = random.Random(0).choices(range(10, 200), k=32)
    rows = collation.best_fit(lengths, max(lengths))
    assert sorted(number for row in rows for number in row) == list(range(32))
    filled = [sum(lengths[number] for number in row) for row in rows]
    assert max(filled) == max(lengths)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // max(lengths)) + 1  # Johnson et al. 1974


def test_texts_of_one_length_keep_their_rows_and_their_order():
    batch = collation.Collator(pad_token=0, side_by_side=True)(texts_of([8, 8, 8]))
    assert batch["input_ids"].tolist() == [text["input_ids"] for text in texts_of([8, 8, 8])]
    assert batch["position_ids"].tolist() == [[*range(8)]] * 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_parts_of_padded_texts_hold_each_text_once_and_little_padding(side):
    lengths = [3, 40, 7, 5, 12, 6]
    numbers = [torch.arange(1, length + 1) + 100 * row for row, length in enumerate(lengths)]
    ids = torch.nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_side=side)
    parts = collation.parts_of_padded({"input_ids": ids, "attention_mask": (ids > 0).long()}, 24)
    assert [tuple(part["input_ids"].shape) for part in parts] == [(1, 40), (2, 12), (3, 6)]
    read = [
        row[mask > 0] for part in parts for row, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
    ]
    assert sorted(map(torch.Tensor.tolist, read)) == sorted(map(torch.Tensor.tolist, numbers))


@pytest.mark.parametrize("side_by_side", [True, False])
def test_padding_and_beginnings_count_nowhere(side_by_side):
    texts = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    texts += [{"input_ids": [10, 11, 12, 13, 14, 15], "labels": [10, 11, 12, 13, 14, 15]}]
    batch = collation.Collator(pad_token=0, side_by_side=side_by_side)(texts)
    assert batch["input_ids"].shape == (1 if side_by_side else 3, 16)
    following = sorted([6, 7, 9, 11, 12, 13, 14, 15])
    for tokens in ("all", "response"):
        at = distillation.compared(batch["labels"], batch["position_ids"], tokens)
        assert sorted(batch["input_ids"][:, 1:][at].tolist()) == following


@pytest.mark.parametrize("family", FAMILIES)
def test_side_by_side_each_text_has_the_states_that_it_has_alone(family):
    model, texts = model_of(*FAMILIES[family][:2]).eval(), texts_of([100, 20, 31, 49, 77, 12])
    for dtype in DTYPES:
        assert collation.keeps_apart(model_of(*FAMILIES[family][:2], dtype))
    batch = collation.Collator(pad_token=0, side_by_side=True)(texts)
    assert len(batch["input_ids"]) < len(texts)
    tokens = {key: value for key, value in batch.items() if key != "labels"}
    found = distillation.last_hidden_states(model, model, tokens)
    begins = [(row, begin) for row, begin in (batch["position_ids"] == 0).nonzero().tolist()]
    for text in texts:
        ids = torch.tensor([text["input_ids"]])
        with torch.no_grad():
            alone = distillation.last_hidden_states(model, model, {"input_ids": ids})[0]
        ((row, begin),) = [
            (row, begin)
            for row, begin in begins
            if batch["input_ids"][row, begin : begin + ids.shape[1]].tolist() == text["input_ids"]
        ]
        torch.testing.assert_close(found[row, begin : begin + ids.shape[1]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config_class", "values"), [("MambaConfig", {}), ("Lfm2Config", {"layer_types": ["conv", "full_attention"]})]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_that_carries_a_state_from_text_to_text_is_found_out(config_class, values, dtype):
    assert not collation.keeps_apart(model_of(config_class, SIZES | values, dtype))


def test_a_training_on_a_cpu_asks_for_no_cache(untrained, texts, tmp_path):
    """With a cache, transformers treats a row's texts as a single one in models with a separate text config."""
    trainer, asked = trainer_of(untrained, texts, tmp_path), []
    forward = trainer.model.get_base_model().forward
    trainer.model.get_base_model().forward = lambda **given: asked.append(given) or forward(**given)
    trainer.train()
    assert asked[-1]["use_cache"] is False
    assert "position_ids" in asked[-1]


@pytest.mark.parametrize("ends", [True, False])
def test_a_tokenizer_without_padding_trains_the_same(untrained, texts, tmp_path, ends):
    padded = trainer_of(untrained, texts, tmp_path / "padded")
    expected = losses(padded)
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    tokenizer.pad_token = None
    if not ends:
        tokenizer.eos_token = None
    trainer = trainer_of(untrained, texts, tmp_path / "not", tokenizer)
    assert losses(trainer) == pytest.approx(expected)
    assert trainer.state.num_input_tokens_seen == padded.state.num_input_tokens_seen


def trainer_of(untrained, texts, folder, tokenizer=None):
    """Return a trainer that takes three steps on questions."""
    recipe, options = Recipe(**RECIPE | {"max_steps": 3}), training_options(untrained, texts, folder)
    model = backend.add_adapters(options.model, recipe, "cpu")
    rows = data.tokenize(options.texts, tokenization.load_tokenizer(options.model), recipe, folder)
    return backend.make_trainer(model, tokenizer or tokenization.load_tokenizer(options.model), rows, recipe, options)


def losses(trainer):
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
