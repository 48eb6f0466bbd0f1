"""Compare the memory that is predicted for a checkpoint with sums by hand."""

import json
import shutil

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPTNeoXConfig

import measure_memory
from programs import run_script

LAYERS, HEADS = {"num_hidden_layers": 3}, {"num_attention_heads": 4}
SMALL = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, **LAYERS, **HEADS, "pad_token_id": 0}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 10}
SHARED = {"num_kv_shared_layers": 1, "head_dim": 16, "global_head_dim": 32}
SHARED |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24, "v_head_dim": 20}


def without_weights(model_type, settings):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings), dtype=torch.bfloat16)


def test_the_cache_of_gemma_3_12b():
    settings = dict(num_hidden_layers=48, num_key_value_heads=8, num_attention_heads=16, head_dim=256)
    model = without_weights("gemma3_text", settings | dict(hidden_size=3840, sliding_window=1024))
    short = 2 * 48 * 150 * 8 * 256 * 2  # keys and values, layers, tokens, heads, width, bytes
    assert measure_memory.cache_bytes(model, 150) == short
    # one layer in six sees everything, the others a window of 1,024
    long = 2 * (8 * 4096 + 40 * 1024) * 8 * 256 * 2
    assert measure_memory.cache_bytes(model, 4096) == long


@pytest.mark.parametrize(
    ("model_type", "settings", "numbers"),
    [  # the fp32 numbers that the cache holds for 100 tokens
        ("llama", {"num_key_value_heads": 2}, 2 * 3 * 100 * 2 * 16),
        ("qwen2", {"num_key_value_heads": 2}, 2 * 3 * 100 * 2 * 16),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 32}, 2 * 3 * 100 * 2 * 32),
        ("mistral", {"num_key_value_heads": 1, "sliding_window": 10}, 2 * 3 * 10 * 16),
        ("gemma2", SLIDING | {"num_key_value_heads": 2, "head_dim": 16}, 2 * (10 + 2 * 100) * 2 * 16),
        ("gpt_neox", {}, 2 * 3 * 100 * 4 * 16),
        ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4}, 2 * 3 * 100 * 4 * 16),
        ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}, 2 * 3 * 100 * 4 * 16),
        ("mpt", {"d_model": 64, "n_layers": 3, "n_heads": 4}, 2 * 3 * 100 * 4 * 16),
        ("bloom", {"n_layer": 3, "n_head": 4}, 2 * 3 * 100 * 4 * 16),
        ("falcon", {"multi_query": True}, 2 * 3 * 100 * 16),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 2 * 3 * 100 * 4 * 16),  # heads repeated
        ("phi3", {"num_key_value_heads": 2, "rope_parameters": LONGROPE}, 2 * 3 * 100 * 2 * 16),
        ("deepseek_v3", MLA | {"num_key_value_heads": 4, "first_k_dense_replace": 3}, 3 * 100 * (16 + 8)),  # one latent
        ("gemma4_text", SLIDING | SHARED | {"num_key_value_heads": 2}, 2 * (10 * 2 * 16 + 100 * 2 * 32)),
    ],
)
def test_the_cache_is_what_the_model_keeps(model_type, settings, numbers):
    config = CONFIG_MAPPING[model_type](**SMALL | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert measure_memory.cache_bytes(model, 100) == 4 * numbers


def test_a_hybrid_keeps_the_same_of_any_text_in_its_recurrent_layers():
    settings = SMALL | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["lfm2"](**settings), dtype=torch.float32)
    one, hundred = (measure_memory.cache_bytes(model, tokens) for tokens in (1, 100))
    assert hundred - one == 4 * 2 * 99 * 2 * 16
    assert one == 4 * (2 * 2 * 16 + 2 * 64 * 3)  # two layers with the last three inputs


def test_predicted_and_measured_stand_side_by_side(untrained, tmp_path):
    report = measure(untrained / "model", tmp_path)
    predicted = report["predicted"]
    assert report["generated_tokens"] == 4
    assert set(predicted["weights_gb"]) == {"BF16"}
    # in memory the weights are fp32; the tied head is stored once
    assert 2 * predicted["weights_gb"]["BF16"] == pytest.approx(report["weights_gb"], rel=0.01)
    assert report["int4_path"] is None
    assert predicted["total_gb"] == pytest.approx(predicted["weights_gb"]["BF16"] + predicted["cache_gb"])


def test_a_template_that_refuses_system_messages(untrained, tmp_path):
    model = shutil.copytree(untrained / "model", tmp_path / "model")
    refusal = "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(refusal + template)
    assert measure(model, tmp_path)["generated_tokens"] == 4


def test_a_model_without_grouped_queries(untrained, tmp_path):
    """GPT-NeoX has no num_key_value_heads. Its prompt comes from the template, with one bos."""
    model = shutil.copytree(untrained / "model", tmp_path / "model")
    (model / "model.safetensors").unlink()
    config = GPTNeoXConfig(**SMALL | {"vocab_size": 16384}, bos_token_id=2, eos_token_id=1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(model)
    report = measure(model, tmp_path)
    tokens = report["predicted"]["cache_gb"] * 1e9 / (2 * 3 * 4 * 16 * 4)
    assert tokens == pytest.approx(round(tokens))
    assert report["generated_tokens"] == 4


def measure(model, folder):
    output = folder / "memory.json"
    options = ["--checkpoint", model, "--dtype", "float32", "--max-new-tokens", 4, "--output", output]
    result = run_script("measure_memory", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text())
