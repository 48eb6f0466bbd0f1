"""Divergence and perplexity equal those of full logits in fp64, and lm-eval's perplexity of a text of one window."""

import json
import math
import os
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors import safe_open

import families
from divergence_runs import CONTEXT, LIMIT, SCALED, write, write_int4
from int4_qat.checkpoint import architecture, heads
from int4_qat.checkpoint.heads import Head, Reading
from int4_qat.engines import inference
from int4_qat.evaluation import divergence
from int4_qat.quantization import schemes
from int4_qat.system import files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import quantize_options, run_script


def windows_of(checkpoint: Path, text: Path) -> list[list[int]]:
    """Return the windows of a text, cut token by token as the protocol says."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    has_bos = tokenizer.bos_token is not None
    tokens = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"][:LIMIT]
    cut = []
    for token in tokens:
        if not cut or len(cut[-1]) == CONTEXT:
            cut.append([tokenizer.bos_token_id] if has_bos else [])
        cut[-1].append(token)
    return cut


@torch.no_grad()
def in_fp64(checkpoint: Path, windows: list[list[int]]) -> torch.Tensor:
    """Return log-probabilities (scored tokens, vocabulary) of the plain forward pass in fp64."""
    config = architecture.read_config(checkpoint)
    if hasattr(config, "quantization_config"):
        model = inference.load_model(checkpoint, torch.float32, "cpu").double()
    else:
        model = architecture.auto_class(config).from_pretrained(checkpoint, dtype=torch.float64)
    return torch.cat([model(torch.tensor([window])).logits[0, :-1].log_softmax(-1) for window in windows])


def kl(reference: torch.Tensor, found: torch.Tensor) -> float:
    """Return the mean KL(reference || found) by its definition."""
    return (
        torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=reference), torch.distributions.Categorical(logits=found)
        )
        .mean()
        .item()
    )


def expect(found: dict, samples: pd.DataFrame, checkpoint: Path, base: Path, own: Path, text: Path) -> None:
    """Check all figures against those of full logits."""
    windows = windows_of(base, text)
    following = torch.tensor([token for window in windows for token in window[1:]])
    ours, bases, owns = (in_fp64(folder, windows) for folder in (checkpoint, base, own))
    perplexities = [each.gather(1, following[:, None]).mean().neg().exp().item() for each in (ours, bases)]
    assert (found["tokens"], found["windows"]) == (len(following), len(windows))
    assert found["kl"] == pytest.approx(kl(bases, ours), rel=1e-4, abs=1e-6)
    assert found["top1_agreement"] == (ours.argmax(-1) == bases.argmax(-1)).double().mean().item()
    assert [found["perplexity"], found["perplexity_of_base"]] == pytest.approx(perplexities, rel=1e-4)
    if found["kl_from_own_bf16"] is not None:
        assert found["kl_from_own_bf16"] == pytest.approx(kl(owns, ours), rel=1e-4)
    assert samples["tokens"].tolist() == [len(window) - 1 for window in windows]
    assert samples["kl"].sum() / len(following) == pytest.approx(found["kl"])
    assert ("kl_from_own_bf16" in samples) == (found["kl_from_own_bf16"] is not None)


@pytest.mark.parametrize("name", [*families.FAMILIES, *SCALED])
def test_a_head_makes_the_logits_of_the_plain_forward_pass(name, untrained, tmp_path):
    folder = write(name, untrained / "model", tmp_path / name)
    model = inference.load_model(folder, torch.float32, "cpu")
    tokens = torch.randint(0, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
    hidden = divergence.last_hidden_states(model, tokens.tolist())
    alone, called = heads.load(folder, torch.float32, "cpu"), []
    for body in (model.base_model, alone.model.base_model):
        body.register_forward_pre_hook(lambda *_: called.append("before"))
        body.register_forward_hook(lambda *_: called.append("after"))
    for found in (Head(model), alone):
        assert torch.equal(torch.stack([found.logits(each) for each in hidden]), expected)
        assert found.vocabulary == expected.shape[-1]
    assert {parameter.device.type for parameter in alone.model.base_model.parameters()} == {"meta"}
    assert alone.digest() == Head(model).digest()
    assert called == []
    with torch.no_grad():  # the body is restored
        assert torch.equal(model(input_ids=tokens, use_cache=False).logits, expected)
    assert called == ["before", "after"]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "gemma2", "gemma3", "granite"])
def test_figures_are_those_of_full_logits_in_fp64(name, untrained, text, record, evaluate, monkeypatch, tmp_path):
    base = write(name, untrained / "model", tmp_path / "base")
    arm = write(name, untrained / "model", tmp_path / "arm", change=0.1)
    int4 = write_int4(arm, monkeypatch, tmp_path / "int4")
    record(base)
    bos = None if name == "qwen2" else "<bos>"
    for checkpoint, (report, samples) in ((arm, record(arm, base)), (int4, evaluate(int4, base, arm))):
        expect(report["texts"]["held_out"], samples, checkpoint, base, arm, text)
        assert report["texts"]["held_out"]["kl"] > 1e-4
        assert report["same_head"]
        assert report["protocol"]["held_out"] == {
            "context": CONTEXT,
            "limit": LIMIT,
            "bos": bos,
            "dtype": "float32",
            "sha256": files.sha256(text),
        }
        assert report["int4_path"] == (None if checkpoint == arm else "dequantized")
    assert report["texts"]["held_out"]["kl_from_own_bf16"] < report["texts"]["held_out"]["kl"]


def test_the_quantized_base_is_as_far_from_its_own_weights_as_from_the_base(
    untrained, text, record, evaluate, monkeypatch, tmp_path
):
    base = write("llama", untrained / "model", tmp_path / "base")
    int4 = write_int4(base, monkeypatch, tmp_path / "int4")
    record(base)
    report, samples = evaluate(int4, base, base)
    expect(report["texts"]["held_out"], samples, int4, base, base, text)
    assert (samples["kl"] == samples["kl_from_own_bf16"]).all()


@pytest.mark.parametrize("dtype", architecture.DTYPES)
def test_the_base_reads_the_text_once_and_is_itself(dtype, untrained, text, record, monkeypatch, tmp_path):
    base = write("gemma3", untrained / "model", tmp_path / "base")
    read, last_hidden_states = [], divergence.last_hidden_states

    def watched(model: transformers.PreTrainedModel, batch: list[list[int]]) -> torch.Tensor:
        read.extend(batch)
        return last_hidden_states(model, batch)

    monkeypatch.setattr(divergence, "last_hidden_states", watched)
    report, samples = record(base, dtype=dtype)
    assert read == windows_of(base, text)
    with safe_open(tmp_path / "base_states" / "held_out.safetensors", "pt") as stored:
        assert stored.get_tensor("hidden").dtype == architecture.DTYPES[dtype]
    found = report["texts"]["held_out"]
    assert (found["kl"], found["top1_agreement"], found["kl_from_own_bf16"]) == (0, 1, None)
    assert found["perplexity"] == found["perplexity_of_base"]
    assert (samples["kl"] == 0).all()
    assert report["int4_path"] is None


def test_another_head_is_noticed_and_makes_its_own_logits(untrained, text, record, evaluate, monkeypatch, tmp_path):
    base = write("llama", untrained / "model", tmp_path / "base")
    arm = write("llama", untrained / "model", tmp_path / "arm", change=0.1, head=True)
    other = write("llama", untrained / "model", tmp_path / "other", change=0.1, head=True, seed=1)
    int4 = write_int4(arm, monkeypatch, tmp_path / "int4")
    record(base)
    in_bf16, _ = record(arm, base), record(other, base)
    found = [(arm, arm, in_bf16), *((int4, own, evaluate(int4, base, own)) for own in (arm, other))]
    for checkpoint, own, (report, samples) in found:
        expect(report["texts"]["held_out"], samples, checkpoint, base, own, text)
        assert not report["same_head"]


def test_no_more_logits_are_held_than_a_block(untrained, text, record, evaluate, monkeypatch, tmp_path):
    base = write("llama", untrained / "model", tmp_path / "base")
    int4 = write_int4(base, monkeypatch, tmp_path / "int4")
    record(base)
    whole, _ = evaluate(int4, base, base)
    monkeypatch.setattr(heads, "BLOCK_BYTES", 7 * 4 * families.SIZES["vocab_size"])
    shapes = []
    logits = Head.logits

    def watched(self: Head, hidden: torch.Tensor) -> torch.Tensor:
        hook = self.model.get_output_embeddings().register_forward_hook(lambda *found: shapes.append(found[2].shape))
        try:
            return logits(self, hidden)
        finally:
            hook.remove()

    monkeypatch.setattr(Head, "logits", watched)
    report, samples = evaluate(int4, base, base)
    assert {shape[:-1].numel() for shape in shapes} <= set(range(1, 8))
    assert sum(shape[:-1].numel() for shape in shapes) == 2 * samples["tokens"].sum()  # the base's, and int4's
    for name, value in whole["texts"]["held_out"].items():
        assert report["texts"]["held_out"][name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_perplexity_is_lm_evals_on_a_text_of_one_window(name, untrained, words, tmp_path):
    """lm-eval scores every token after a prefix, which is the bos or, for lack of one, the text's own first token here.

    By default, lm-eval would add the bos both before the text and in it, and score it.
    """
    folder = write(name, untrained / "model", tmp_path / name)
    model, tokenizer = inference.load_model(folder, torch.float32, "cpu"), tokenization.load_tokenizer(folder)
    text = "".join(random.Random(2).choices(words, k=40))
    (window,) = divergence.windows(tokenizer, text, 2048, None)
    reading = Reading(divergence.last_hidden_states(model, [window])[0], Head(model))
    (found,) = divergence.on_host([divergence.compare(reading, reading, None, torch.tensor(window))])
    rest = text if name == "llama" else tokenizer.decode(window[1:])
    once = {"prefix_token_id": window[0], "add_bos_token": False}
    harness = HFLM(pretrained=model, tokenizer=tokenizer, max_length=2048, batch_size=1, **once)
    assert harness.tok_encode(rest) == window[1:]
    (likelihood,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (rest,), 0)], True)
    assert (name == "llama") == (window[0] == tokenizer.bos_token_id)
    assert found["loss"] == pytest.approx(-likelihood, rel=1e-5)
    assert found["loss"] / (len(window) - 1) > math.log(len(window))  # the model is not certain of every token


@pytest.mark.parametrize(("name", "bos"), [("llama", 1), ("qwen2", 0)])
@pytest.mark.parametrize("limit", [None, 31, 32, 33, 64, 200])
def test_windows_cover_the_text_and_do_not_overlap(name, bos, limit, untrained, words, tmp_path):
    tokenizer = tokenization.load_tokenizer(families.write(name, untrained / "model", tmp_path / name))
    text = "".join(random.Random(3).choices(words, k=90))
    found = divergence.windows(tokenizer, text, CONTEXT, limit)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"][:limit]
    joined = [token for window in found for token in window[bos:]]
    lost = len(tokens) - len(joined)
    assert joined == tokens[: len(joined)]
    assert lost == (1 if not bos and len(tokens) % CONTEXT == 1 else 0)  # a token that nothing predicts
    assert all(len(window) == CONTEXT for window in found[:-1])
    assert 1 < len(found[-1]) <= CONTEXT
    assert all(window[:bos] == [tokenizer.bos_token_id] * bos for window in found)
    assert [window for batch in divergence.batches(found) for window in batch] == found
    assert all(len({*map(len, batch)}) == 1 for batch in divergence.batches(found))


def test_a_text_without_tokens_has_no_windows(untrained):
    with pytest.raises(InputError, match=r"^expected a text of two tokens or more, found 0$"):
        divergence.windows(tokenization.load_tokenizer(untrained / "model"), "", CONTEXT, None)


@pytest.fixture
def wikitext() -> Path:
    """Return wikitext-2's test text, or skip the test if TEXT_DIR is not set."""
    folder = os.environ.get("TEXT_DIR")
    if not folder:
        pytest.skip("TEXT_DIR is not set: no wikitext-2 to test with")
    return Path(folder) / "wikitext2_test.txt"


@pytest.fixture
def gemma() -> Path:
    """Return the folder of Gemma 3 270M in bf16, or skip the test if there is none."""
    folder = os.environ.get("REAL_MODELS_DIR")
    if not folder or not (Path(folder) / "gemma-3-270m").is_dir():
        pytest.skip("REAL_MODELS_DIR is not set, or holds no gemma-3-270m: no real model to test with")
    return Path(folder) / "gemma-3-270m"


@pytest.mark.slow
def test_what_int4_costs_gemma_3_270m(gemma, wikitext, tmp_path):
    """Another program measured a KL of 0.59 nats for round-to-nearest in groups of 128."""
    int4, states = tmp_path / "int4", tmp_path / "states"
    outputs = {
        name: ["--report", tmp_path / f"{name}.json", "--samples", tmp_path / f"{name}.parquet"]
        for name in ("base-bf16", "base-int4")
    }
    run = [
        ("quantize", "--checkpoint", gemma, *quantize_options(schemes.int4(128)), "--output", int4),
        (
            *("record_hidden_states", "--checkpoint", gemma, "--texts", wikitext, "--context", 1024, "--limit", 4092),
            *("--dtype", "float32", "--output", states, *outputs["base-bf16"]),
        ),
        (
            *("evaluate_divergence", "--checkpoint", int4, "--base", gemma, "--base-states", states),
            *("--own", gemma, "--own-states", states, *outputs["base-int4"]),
        ),
    ]
    for command in run:
        result = run_script(*command)
        assert result.returncode == 0, result.stderr
    found = {name: files.read_json(tmp_path / f"{name}.json")["texts"] for name in outputs}
    print(json.dumps(found, indent=2))
    bf16, quantized = (each[wikitext.stem] for each in found.values())
    assert (bf16["kl"], bf16["top1_agreement"], bf16["tokens"]) == (0, 1, 4092)
    assert quantized["kl"] == pytest.approx(0.6, abs=0.1)
    assert quantized["kl_from_own_bf16"] == quantized["kl"]
    assert quantized["perplexity"] > 1.5 * bf16["perplexity"]
