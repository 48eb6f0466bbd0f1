"""Write tiny random models of the families that the workflow supports, in the files that transformers saves."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

import download_model
from programs import run_in_process

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 32}  # not hidden_size / num_attention_heads, as in Gemma and Qwen 3
GEMMA_3 = SIZES | HEADS | {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA_4 = GEMMA_3 | {
    "global_head_dim": 32,
    "vocab_size_per_layer_input": 1024,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "enable_moe_block": False,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 14,
}
IMAGE_TOKENS = {"boi_token_index": 6, "eoi_token_index": 7, "image_token_index": 8}
NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
# Qwen's template. transformers loads Qwen's tokenizer as a byte-level Qwen2Tokenizer without bos, whatever the
# folder says.
CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
CHATML_MARKS = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# name: config class, its values, linears per layer in int4
FAMILIES = {
    "llama": ("LlamaConfig", SIZES | {"tie_word_embeddings": False}, 7),
    "llama-tied": ("LlamaConfig", SIZES | {"tie_word_embeddings": True}, 7),
    "qwen2": ("Qwen2Config", SIZES, 7),
    "qwen3": ("Qwen3Config", SIZES | HEADS, 7),
    "mistral": ("MistralConfig", SIZES | HEADS | {"sliding_window": 64}, 7),
    "phi3": ("Phi3Config", SIZES, 4),  # q, k, v are one linear, gate and up another
    "gemma2": ("Gemma2Config", SIZES | HEADS | {"sliding_window": 64}, 7),
    "gemma3-text": ("Gemma3TextConfig", GEMMA_3, 7),
    "gemma3": (
        "Gemma3Config",
        {"text_config": GEMMA_3, "vision_config": VISION | {"image_size": 28}, "mm_tokens_per_image": 4} | IMAGE_TOKENS,
        7,
    ),
    "gemma4-text": ("Gemma4TextConfig", GEMMA_4, 7),
    "olmo2": ("Olmo2Config", SIZES, 7),
    "gpt-neox": ("GPTNeoXConfig", NEOX, 4),
}


def write(name: str, tokenizer: Path, folder: Path) -> Path:
    """Write the folder of a family's tiny random model, with the tokenizer and the chat template of another folder."""
    config_class, values, _ = FAMILIES[name]
    write_model(getattr(transformers, config_class)(**values), tokenizer, folder)
    if name == "qwen2":
        write_byte_level_tokenizer(folder)
    return folder


def marks(name: str) -> dict[str, str]:
    """Return the marks of a family's turns, by their keys in the config; they are empty if Gemma's apply."""
    return CHATML_MARKS if name == "qwen2" else {}


def write_byte_level_tokenizer(folder: Path) -> None:
    """Replace the tokenizer in a folder by a byte-level one in Qwen's form."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(config: transformers.PretrainedConfig, tokenizer: Path, folder: Path) -> Path:
    """Write the folder of a random model, with the tokenizer and the chat template of another folder."""
    torch.manual_seed(0)
    auto = "AutoModelForImageTextToText" if hasattr(config, "vision_config") else "AutoModelForCausalLM"
    model = getattr(transformers, auto).from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(tokenizer / file, folder)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    settings.pop("processor_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def bring(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Download a model to a folder, as the rule does; let an InputError propagate."""
    run_in_process(download_model, monkeypatch, "--source", source, "--output", folder)
    return folder


def change_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file to other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
