"""Test what scores depend on: the tokens that the model is given, and likelihoods that tell choices apart."""

import json
import shutil
from collections import Counter

import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import LlamaConfig, LlamaForCausalLM

import evaluate_mmlu
from int4_qat.engines import inference
from int4_qat.evaluation import last_position, stock_scores
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import run_in_process

ENGINES = {"stock": stock_scores.StockScores, "last_position": last_position.LastPosition}
LLAMA = {"vocab_size": 16384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}


@pytest.fixture
def llama(untrained, tmp_path):
    """Return the folder of a small random Llama with the stand-in's tokenizer, for a test to edit."""
    folder = tmp_path / "llama"
    write_llama(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(untrained / "model" / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("processor_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_llama(folder, **changes):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | {"max_position_embeddings": 1024} | changes))
    model.to(torch.bfloat16).save_pretrained(folder)


def post_process(folder, processor):
    """Replace the post-processor in a tokenizer's file, or remove it."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = processor and json.loads(processor.__getstate__())
    path.write_text(json.dumps(content))


def template(single):
    tokens = [("<bos>", 2), ("<eos>", 1)]
    return processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=tokens)


def evaluate(monkeypatch, model, mmlu, folder, engine="last_position", fewshot=0, limit=2, dtype="float32"):
    """Return MMLU's report of one of 57 shards, which has one subject."""
    output = folder / "shard.json"
    run_in_process(
        evaluate_mmlu,
        monkeypatch,
        *("--checkpoint", model, "--mmlu", mmlu, "--num-fewshot", fewshot, "--limit", limit, "--batch-size", 4),
        *("--dtype", dtype, "--engine", engine, "--shards", 57, "--output", output, "--samples", folder / "s.parquet"),
    )
    return json.loads(output.read_text())


def requests(prompts, kind="loglikelihood"):
    """Return the requests of lm-eval: four choices for each prompt, or a text to generate."""
    if kind == "generate_until":
        options = {"until": ["\n"], "max_gen_toks": 2}
        return [Instance(kind, {}, (prompt, options), 0, ("task", n, 1)) for n, prompt in enumerate(prompts)]
    return [
        Instance(kind, {}, (prompt, f" {letter}"), index, ("task", n, 1))
        for n, prompt in enumerate(prompts)
        for index, letter in enumerate("ABCD")
    ]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_the_model_is_given_the_templates_bos_once(llama, engine, written, added):
    """This holds whatever the tokenizer adds itself; the prompts share a prefix that is long enough to be cached."""
    post_process(llama, template("<bos> $A") if added else None)
    if not written:
        path = llama / "chat_template.jinja"
        path.write_text(path.read_text().replace("{{- bos_token -}}", ""))
    model, given = inference.load_model(llama, torch.float32, "cpu"), []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, tokens: given.extend(tokens[0].tolist()))
    tokenizer = tokenization.load_tokenizer(llama)
    language_model = ENGINES[engine](pretrained=model, tokenizer=tokenizer, batch_size=4, softmax_dtype=torch.float32)
    examples = "The following are questions.\n\n" + "Which is it?\nA. a\nB. b\nAnswer: A\n\n" * 8
    prompts = [examples + f"{question}\nAnswer:" for question in ("What is it?", "Which one?", "Who?")]
    language_model.loglikelihood(requests(prompts), disable_tqdm=True)
    check_bos(given, written)
    given.clear()
    language_model.generate_until(requests(prompts, "generate_until"), disable_tqdm=True)
    check_bos(given, written)


def test_cudnn_does_not_attend_to_questions_of_many_lengths(llama, mmlu_folder, tmp_path, monkeypatch):
    allowed = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", allowed.append)
    evaluate(monkeypatch, llama, mmlu_folder, tmp_path)
    assert allowed == [False]


@pytest.mark.parametrize("added", [True, False])
def test_a_whole_text_follows_one_bos(llama, added):
    post_process(llama, template("<bos> $A") if added else None)
    language_model, given = stock(llama), []
    language_model.model.model.embed_tokens.register_forward_pre_hook(
        lambda _, tokens: given.extend(tokens[0].tolist())
    )
    asked = [Instance("loglikelihood_rolling", {}, ("Which is it ? What is it ?",), 0, ("task", 0, 1))]
    before = language_model.tok_encode("Which is it?")
    language_model.loglikelihood_rolling(asked)
    assert [(row[0], row.count(2)) for row in given] == [(2, 1)]
    assert language_model.tok_encode("Which is it?") == before


def check_bos(given, written):
    """Check that rows that begin a text hold one bos, after pads only, and rows that continue a cache hold none."""
    assert given
    counts = Counter(row.count(2) for row in given)
    assert set(counts) <= ({0, 1} if written else {0})
    assert all(next(token for token in row if token != 0) == 2 for row in given if row.count(2))
    longest = [row for row in given if len(row) > 64]
    assert longest
    assert all(row.count(2) == written for row in longest)


@pytest.mark.parametrize(("written", "added"), [(True, True), (True, False), (False, True)])
def test_the_report_names_the_bos(llama, mmlu_folder, tmp_path, monkeypatch, written, added):
    post_process(llama, template("<bos> $A") if added else None)
    if not written:
        path = llama / "chat_template.jinja"
        path.write_text(path.read_text().replace("{{- bos_token -}}", ""))
    settings = evaluate(monkeypatch, llama, mmlu_folder, tmp_path)["settings"]
    assert settings["bos"] == ("<bos>" if written else None)
    assert settings["bos_added_by_tokenizer"] is added


def test_without_a_template_the_tokenizer_keeps_its_habit(llama, mmlu_folder, tmp_path, monkeypatch):
    (llama / "chat_template.jinja").unlink()
    settings = evaluate(monkeypatch, llama, mmlu_folder, tmp_path)["settings"]
    assert settings["bos"] == ("<bos>" if settings["bos_added_by_tokenizer"] else None)


def test_a_tokenizer_that_ends_each_text_is_refused(llama, mmlu_folder, tmp_path, monkeypatch):
    post_process(llama, template("<bos> $A <eos>"))
    with pytest.raises(InputError, match=r"expected only a bos around a prompt, found \['<bos>', '<eos>'\] as well$"):
        evaluate(monkeypatch, llama, mmlu_folder, tmp_path)


def test_engines_by_the_config(llama, mmlu_folder, tmp_path, monkeypatch, capsys):
    settings = evaluate(monkeypatch, llama, mmlu_folder, tmp_path)["settings"]
    assert (settings["engine"], settings["engine_used"]) == ("last_position", "last_position")
    assert settings["engine_reason"] is None
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    write_llama(llama, rope_parameters=rope)
    report = evaluate(monkeypatch, llama, mmlu_folder, tmp_path)
    assert (report["settings"]["engine"], report["settings"]["engine_used"]) == ("last_position", "stock")
    assert "'dynamic'" in report["settings"]["engine_reason"]
    assert report["stock_check"] is None
    assert "engine: using stock instead of last_position: positions scaled by 'dynamic'" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.5)])
@pytest.mark.parametrize("fewshot", [0, 5])
def test_each_run_is_compared_with_lm_evals_own_code(
    untrained, mmlu_folder, tmp_path, monkeypatch, dtype, tolerance, fewshot
):
    check = evaluate(monkeypatch, untrained / "model", mmlu_folder, tmp_path, fewshot=fewshot, dtype=dtype)[
        "stock_check"
    ]
    assert check["questions"] == last_position.CHECKED
    assert check["tolerance"] == tolerance
    assert check["largest_difference"] < tolerance / 5


@pytest.mark.parametrize("engine", ENGINES)
def test_prompts_longer_than_the_context_are_counted_and_said(
    llama, mmlu_folder, tmp_path, monkeypatch, capsys, engine
):
    write_llama(llama, max_position_embeddings=128)
    data = shutil.copytree(mmlu_folder, tmp_path / "mmlu")
    test = pd.read_parquet(data / "test.parquet")
    first = test.index[test["subject"] == "virology"][0]
    test.loc[first, "question"] = " ".join([test.loc[first, "question"]] * 30)  # the longest subject is the first shard
    test.to_parquet(data / "test.parquet", index=False)
    report = evaluate(monkeypatch, llama, data, tmp_path, engine)
    assert report["by_subject"]["virology"]["prompts_over_max_length"] == 1
    assert report["settings"]["max_length"] == 128
    line = "1 of 2 questions are longer than the model's context of 128 tokens: they lose their beginning, bos included"
    assert capsys.readouterr().out.count(line) == 1


def test_prompts_to_continue_are_counted_with_the_room_for_the_answer(llama, capsys):
    write_llama(llama, max_position_embeddings=64)
    language_model = stock(llama)
    long = "A " * 61
    assert len(language_model.tok_encode(long)) == 63  # leaves no room for two new tokens
    language_model.generate_until(requests(["Who?", long], "generate_until"), disable_tqdm=True)
    assert language_model.prompts_over_max_length == {"task": 1}
    assert "1 of 2 questions are longer than the model's context of 64" in capsys.readouterr().out


def test_an_answer_longer_than_the_context_is_one_line(llama):
    write_llama(llama, max_position_embeddings=64)
    asked = requests(["Who?"], "generate_until")
    asked[0].arguments[1]["max_gen_toks"] = 64
    with pytest.raises(InputError, match=r"^task: expected fewer new tokens than the model's context of 64, found 64$"):
        stock(llama).generate_until(asked, disable_tqdm=True)


def change_weights(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w | {"lm_head.weight": 0 * w["lm_head.weight"]}, "accuracy: expected choices with different log-"),
        (
            lambda w: w | {"model.norm.weight": w["model.norm.weight"] * torch.nan},
            "expected a finite log-likelihood, found",
        ),
        (
            lambda w: {name: 0 * x if "o_proj" in name or "down_proj" in name else x for name, x in w.items()},
            "accuracy: expected questions with different log-likelihoods",  # the model sees only the last token
        ),
    ],
)
def test_likelihoods_that_say_nothing_are_no_accuracy(
    llama, mmlu_folder, tmp_path, monkeypatch, engine, change, problem
):
    change_weights(llama, change)
    with pytest.raises(InputError, match=problem):
        evaluate(monkeypatch, llama, mmlu_folder, tmp_path, engine)
    assert not (tmp_path / "shard.json").exists()


def test_whole_texts_need_a_likelihood_too(llama):
    asked = [Instance("loglikelihood_rolling", {}, ("Which is it?",), 0, ("task", 0, 1))]
    assert stock(llama).loglikelihood_rolling(asked)[0] < 0
    change_weights(llama, lambda w: w | {"model.norm.weight": w["model.norm.weight"] * torch.nan})
    with pytest.raises(InputError, match=r"^task, question 0: expected a finite log-likelihood, found nan$"):
        stock(llama).loglikelihood_rolling(asked)


def test_some_equal_likelihoods_are_a_result():
    asked = requests(["Who?", "What?"])
    scores = [(value, False) for value in (-1.0, -1.0, -1.0, -1.0, -1.0, -2.0, -3.0, -4.0)]
    stock_scores.refuse_equal(asked, scores)
    stock_scores.refuse_equal(asked[:4], scores[:4])


@pytest.mark.parametrize("engine", ENGINES)
def test_choices_without_a_token_of_their_own_are_one_line(llama, mmlu_folder, tmp_path, monkeypatch, engine):
    """A tokenizer that drops letters makes choices empty, and one that folds them makes two choices equal."""
    path = llama / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": " [A-D]$"}, "content": ""}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"^mmlu_\w+, question 0: expected tokens of the choice ' A', found none$"):
        evaluate(monkeypatch, llama, mmlu_folder, tmp_path, engine)
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": " [A-D]$"}, "content": " A"}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"^mmlu_\w+, question 0: expected different tokens for ' A' and ' B'$"):
        evaluate(monkeypatch, llama, mmlu_folder, tmp_path, engine)


@pytest.mark.parametrize("added", [True, False])
def test_tokens_that_are_made_at_once_are_lm_evals(llama, added):
    post_process(llama, template("<bos> $A") if added else None)
    ours, asked = stock(llama), requests(["Which one?", "Which one? ", " ", "<bos>Which one?"])
    ours.encode_at_once(asked)
    kept, ours.encoded = [ours.tokens(request) for request in asked], {}
    theirs = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer)
    assert kept == [theirs._encode_pair(*request.args) for request in asked]
    assert kept == [ours.tokens(request) for request in asked]


def stock(folder):
    model, tokenizer = inference.load_model(folder, torch.float32, "cpu"), tokenization.load_tokenizer(folder)
    return stock_scores.StockScores(pretrained=model, tokenizer=tokenizer, batch_size=4, softmax_dtype=torch.float32)
