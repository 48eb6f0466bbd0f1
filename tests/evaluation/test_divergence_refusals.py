"""Inputs that cannot be compared are refused before a model runs, with one line that says what was expected."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers

import families
import record_hidden_states
from divergence_runs import CONTEXT, LIMIT, found_by, write, write_int4
from int4_qat.checkpoint import heads
from int4_qat.system.errors import InputError


def test_a_context_beyond_the_models_is_one_line(untrained, record, tmp_path):
    base = families.write("gemma3", untrained / "model", tmp_path / "base")
    with pytest.raises(InputError) as caught:
        record(base, context=2049)
    expected = "evaluation.divergence.context: expected at most 2048, the model's context, found 2049"
    assert str(caught.value) == expected
    assert not (tmp_path / "base_states").exists()


@pytest.mark.parametrize(
    ("content", "limit", "problem"),
    [
        (None, 31, "expected 2 windows of 32 tokens in the first 31 or more, for intervals, found 1"),
        ("", LIMIT, "expected a text of two tokens or more, found 0"),
    ],
)
def test_a_text_too_short_for_an_interval_is_one_line(untrained, text, record, tmp_path, content, limit, problem):
    if content is not None:
        text.write_text(content)
    base = families.write("llama", untrained / "model", tmp_path / "base")
    with pytest.raises(InputError) as caught:
        record(base, limit=limit)
    assert str(caught.value) == f"{text}: {problem}"


@pytest.fixture
def three(untrained, record, monkeypatch, tmp_path) -> tuple[Path, Path, Path]:
    """Return a base and an arm, both with their states, and the arm in int4."""
    base, arm = (write("llama", untrained / "model", tmp_path / name) for name in ("base", "arm"))
    record(base)
    record(arm, base)
    return base, arm, write_int4(arm, monkeypatch, tmp_path / "int4")


@pytest.fixture
def refusals(record, evaluate):
    """Return a function that returns both programs' errors when an arm and its int4 are compared with a base."""

    def run(base: Path, arm: Path, int4: Path) -> list[str]:
        found = []
        for compare in (lambda: record(arm, base), lambda: evaluate(int4, base, arm)):
            with pytest.raises(InputError) as caught:
                compare()
            found.append(str(caught.value))
        return found

    return run


def test_states_of_another_protocol_are_one_line(three, record, refusals):
    base, arm, int4 = three
    shutil.rmtree(f"{base}_states")
    record(base, context=CONTEXT // 2)
    there, here = (f"{folder}_states/held_out.safetensors" for folder in (base, arm))
    expected = f"{here}: expected the tokens and the protocol of {there}, found others; record both again"
    assert refusals(base, arm, int4) == [expected] * 2


def test_states_of_other_texts_are_one_line(three, refusals):
    base, arm, int4 = three
    states = Path(f"{base}_states")
    shutil.copy(states / "held_out.safetensors", states / "another.safetensors")
    expected = f"{arm}_states: expected the text of {states}/another.safetensors, found none"
    assert refusals(base, arm, int4) == [expected] * 2


def test_no_states_are_one_line(three, refusals):
    base, arm, int4 = three
    (Path(f"{base}_states") / "held_out.safetensors").unlink()
    expected = f"{base}_states: expected the hidden states of texts, found none"
    assert refusals(base, arm, int4) == [expected] * 2


def test_broken_states_are_one_line(three, refusals):
    base, arm, int4 = three
    path = Path(f"{base}_states") / "held_out.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for found in refusals(base, arm, int4):
        assert found.startswith(f"{path}: the hidden states cannot be read (")
        assert "\n" not in found


def test_a_variant_in_bf16_is_compared_where_it_is_recorded(three, evaluate):
    base, arm, _ = three
    with pytest.raises(InputError) as caught:
        evaluate(arm, base, arm)
    problem = "expected a quantized checkpoint, found one in bf16, which record_hidden_states compares"
    assert str(caught.value) == f"{arm}: {problem}"


@pytest.mark.parametrize(("given", "missing"), [("--base", "--base-states"), ("--base-states", "--base")])
def test_half_a_base_is_one_line(three, text, monkeypatch, given, missing):
    base, arm, _ = three
    options = ["--context", CONTEXT, "--dtype", "float32", "--output", f"{arm}_states", given, base]
    with pytest.raises(InputError) as caught:
        found_by(record_hidden_states, monkeypatch, ["--checkpoint", arm, "--texts", text, *options], arm)
    assert str(caught.value) == f"{missing}: expected a folder, since {given} is given, found none"


def test_another_vocabulary_is_one_line(three, untrained, record, refusals, monkeypatch, tmp_path):
    base, *_ = three
    config = transformers.LlamaConfig(**families.SIZES | {"vocab_size": 1100, "tie_word_embeddings": False})
    larger = families.write_model(config, untrained / "model", tmp_path / "larger")
    int4 = write_int4(larger, monkeypatch, tmp_path / "larger_int4")
    record(larger)
    problem = f"expected the vocabulary of {base}, 1024 tokens, found 1100"
    assert refusals(base, larger, int4) == [f"{larger}: {problem}", f"{int4}: {problem}"]


def test_a_checkpoint_in_int4_has_no_head_to_be_loaded_alone(untrained, monkeypatch, tmp_path):
    int4 = write_int4(untrained / "model", monkeypatch, tmp_path / "int4")
    with pytest.raises(InputError, match="expected only parameters of Gemma3ForConditionalGeneration"):
        heads.load(int4, torch.float32, "cpu")
