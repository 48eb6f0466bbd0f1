"""Make models of two layers with random weights, of kinds that differ in attention and positions."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    eos_token_id=None,
    pad_token_id=0,
    tie_word_embeddings=False,
    initializer_range=0.3,
)
KINDS = ["sliding_attention", "full_attention"]
MODELS = {
    "gemma3_text, window shorter than the prompt": ("gemma3_text", dict(sliding_window=8, layer_types=KINDS)),
    "gemma3_text, window that the continuation leaves": ("gemma3_text", dict(sliding_window=16, layer_types=KINDS)),
    "gemma3_text, window longer than all": ("gemma3_text", dict(sliding_window=64, layer_types=KINDS)),
    "gemma2": ("gemma2", dict(sliding_window=8)),
    "mistral": ("mistral", dict(sliding_window=8)),
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {}),
    "gpt_neox": ("gpt_neox", {}),
}


def random_model(kind: str, **shapes) -> PreTrainedModel:
    """Return a model of a kind with random weights, the same at each call."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL | shapes)
    return AutoModelForCausalLM.from_config(config).eval()
