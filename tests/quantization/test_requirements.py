"""A model that cannot be used is refused on import, with one line that names the file and what was found in it."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from families import SIZES, bring, change_json, write, write_model
from int4_qat.checkpoint import architecture, text_model
from programs import LFS_POINTER

WEIGHTS = "model.safetensors"


def change_weights(spoiled, change, name=WEIGHTS):
    tensors = load_file(spoiled / WEIGHTS)
    save_file(tensors | change(tensors), spoiled / name, {"format": "pt"})


def test_a_model_is_taken_as_it_is(spoiled, tmp_path, monkeypatch):
    (spoiled / "additional_chat_templates").mkdir()
    for name in ("merges.txt", "vocab.txt", "spiece.model", "LICENSE", "additional_chat_templates/tools.jinja"):
        (spoiled / name).touch()
    taken = {path.relative_to(spoiled) for path in spoiled.rglob("*") if path.is_file()}
    for name in (
        ".hidden.json",
        "pytorch_model.bin",
        "hf_quant_config.json",
        "modeling.py",
        "adapter_model.safetensors",
    ):
        (spoiled / name).touch()
    folder = bring(spoiled, tmp_path / "model", monkeypatch)
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == taken


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            lambda: transformers.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=32),
            "model.layers.0.mlp.experts.gate_up_proj: expected linears, found fused experts with weights ",
        ),
        (
            lambda: transformers.Qwen3MoeConfig(
                **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64
            ),
            "model.layers.0.mlp.experts.gate_up_proj: expected linears, found fused experts with weights ",
        ),
        (
            lambda: transformers.GPT2Config(vocab_size=1024, n_embd=64, n_layer=2, n_head=4, bos_token_id=2),
            "transformer.h.0.attn.c_attn.weight: expected a Linear, found a Conv1D, whose weight is transposed",
        ),
    ],
    ids=["experts fused in the file", "experts fused at loading", "Conv1D"],
)
def test_what_is_no_plain_linear_is_refused(config, expected, untrained, tmp_path, refused_model):
    assert refused_model(write_model(config(), untrained / "model", tmp_path / "source")).startswith(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            dict(model_type="llama9"),
            "config.json: model_type: expected one that transformers 5.17.0 has, found 'lla",
        ),
        (dict(model_type=None), "config.json: model_type: expected one that transformers 5.17.0 has, found None"),
        (dict(model_type="t5"), "expected a model that writes text, found t5 (Unrecognized configuration class"),
        (dict(hidden_size="64"), "config.json: expected the config of a llama, found"),
        (dict(hidden_size=128), "expected only parameters of LlamaForCausalLM, found lm_head.weight [1024, 64]"),
        (
            dict(quantization_config={"quant_method": "gptq"}),
            "config.json: quantization_config: expected the weights",
        ),
        (
            dict(transformers_weights="other.safetensors"),
            "config.json: transformers_weights: expected the",
        ),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_a_config_that_cannot_be_used(change, expected, spoiled, refused_model):
    change_json(spoiled / "config.json", **change)
    assert refused_model(spoiled).startswith(expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda tensors: {name: tensor.float() for name, tensor in tensors.items()},
            "expected weights in bfloat16 (BF16), found F32; convert them",
        ),
        (
            lambda tensors: {name: tensor.half() for name, tensor in tensors.items()},
            "expected weights in bfloat16 (BF16), found F16; convert them",
        ),
        (
            lambda _: {"model.norm.weight": torch.tensor([float("nan")] * 2 + [1.0] * 62, dtype=torch.bfloat16)},
            "model.safetensors: model.norm.weight: expected finite numbers, found 2 that are NaN or infinite",
        ),
        (
            lambda _: {"model.norm.weight": torch.full((64,), float("inf"), dtype=torch.bfloat16)},
            "model.safetensors: model.norm.weight: expected finite numbers, found 64 that are NaN or infinite",
        ),
        (
            lambda _: {"score.weight": torch.ones(2, 64)},
            "expected only parameters of LlamaForCausalLM, found score.weight [2, 64]",
        ),
    ],
    ids=["fp32", "fp16", "NaN", "infinite", "of another head"],
)
def test_weights_that_cannot_be_used(change, expected, spoiled, refused_model):
    change_weights(spoiled, change)
    assert refused_model(spoiled) == expected


def test_weights_of_a_type_that_torch_cannot_quantize(spoiled, refused_model):
    change_weights(spoiled, lambda tensors: {name: each.to(torch.float8_e4m3fn) for name, each in tensors.items()})
    assert refused_model(spoiled).startswith("model.safetensors: expected tensors of F64, F32, F16, BF16")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            WEIGHTS,
            LFS_POINTER,
            "model.safetensors: expected a file, found a git-lfs pointer to it; run `git lfs pull`",
        ),
        (
            "tokenizer.json",
            LFS_POINTER,
            "tokenizer.json: expected a file, found a git-lfs pointer to it; run `git lfs pull`",
        ),
        (WEIGHTS, "cut", "model.safetensors: the weights cannot be read"),
        ("config.json", "[]", "config.json: expected a mapping, found list"),
        ("config.json", "{", "config.json: expected valid JSON"),
        ("config.json", "\ufeff{}", "config.json: expected valid JSON (Unexpected UTF-8 BOM"),
        ("tokenizer.json", "{", "the tokenizer cannot be loaded"),
        (
            "adapter_config.json",
            "{}",
            "adapter_config.json: expected a model without an adapter, found one",
        ),
    ],
)
def test_a_file_that_cannot_be_used(name, content, expected, spoiled, refused_model):
    (spoiled / name).write_text(content)
    assert refused_model(spoiled).startswith(expected)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        (
            {"a": "one.safetensors"},
            "one.safetensors: expected the file that model.safetensors.index",
        ),
        ({"a": "../one.safetensors"}, "model.safetensors.index.json: weight_map: expected names of safetensors files"),
        ({}, "model.safetensors.index.json: weight_map: expected a file for each tensor, found {}"),
    ],
)
def test_an_index_of_files_that_are_not_there(weight_map, expected, spoiled, refused_model):
    (spoiled / WEIGHTS).rename(spoiled / "other.safetensors")
    (spoiled / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refused_model(spoiled).startswith(expected)


def test_a_head_that_the_config_ties_and_the_file_does_not(spoiled, refused_model, tmp_path, monkeypatch):
    change_json(spoiled / "config.json", tie_word_embeddings=True)
    expected = "config.json: tie_word_embeddings: expected false, since lm_head.weight is not model.embed_tokens.weight"
    assert refused_model(spoiled) == expected
    change_weights(spoiled, lambda tensors: {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    bring(spoiled, tmp_path / "tied", monkeypatch)


def test_of_two_sets_of_weights_the_one_that_transformers_loads_is_taken(spoiled, tmp_path, monkeypatch):
    (spoiled / f"{WEIGHTS}.index.json").write_text("{}")
    (spoiled / "model-00001-of-00001.safetensors").touch()
    folder = bring(spoiled, tmp_path / "model", monkeypatch)
    assert [path.name for path in folder.glob("*.safetensors*")] == [WEIGHTS]


def test_a_head_that_is_not_there(spoiled, refused_model):
    tensors = load_file(spoiled / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, spoiled / WEIGHTS, {"format": "pt"})
    assert refused_model(spoiled) == "expected the weight lm_head.weight, found none"


def test_buffers_of_old_checkpoints_are_passed_over(spoiled, tmp_path, monkeypatch):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(spoiled, lambda _: {name: torch.arange(8).bfloat16()})
    bring(spoiled, tmp_path / "model", monkeypatch)


def test_what_a_text_passes_through_is_what_gets_a_gradient(untrained, tmp_path):
    """The model is one that sees pictures; the reference is a forward and a backward pass with real weights."""
    folder = write("gemma3", untrained / "model", tmp_path / "gemma3")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    model(input_ids=torch.tensor([[2, 5, 6]])).logits.sum().backward()
    expected = {name for name, each in model.named_parameters(remove_duplicate=False) if each.grad is not None}
    assert text_model.reached_parameters(architecture.without_weights(folder)) == expected
