"""What a model must be is checked when it is brought, in one line that names the file and what was found there."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

import download_model
from families import SIZES, write, write_byte_level_tokenizer, write_model
from int4_qat import model_folder, models, text_model, tokenization, turns
from int4_qat.errors import InputError
from programs import LFS_POINTER, run_in_process

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def llama(untrained, tmp_path_factory):
    return write("llama", untrained / "model", tmp_path_factory.mktemp("families") / "llama")


@pytest.fixture
def source(llama, tmp_path):
    """A copy of a tiny Llama that a test may spoil."""
    return shutil.copytree(llama, tmp_path / "source")


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Bring a model that must be refused: the message, without the source's path; nothing is left of it."""

    def refuse(source):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(InputError) as caught:
            bring(source, tmp_path / "model", monkeypatch)
        assert sorted(tmp_path.iterdir()) == before
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{source}").removeprefix("/").removeprefix(": ")

    return refuse


def bring(source, folder, monkeypatch):
    run_in_process(download_model, monkeypatch, "--source", source, "--output", folder)
    return folder


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(source, change, name=WEIGHTS):
    tensors = load_file(source / WEIGHTS)
    save_file(tensors | change(tensors), source / name, {"format": "pt"})


def test_a_model_is_taken_as_it_is(source, tmp_path, monkeypatch):
    (source / "additional_chat_templates").mkdir()
    for name in ("merges.txt", "vocab.txt", "spiece.model", "LICENSE", "additional_chat_templates/tools.jinja"):
        (source / name).touch()
    taken = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    for name in (
        ".hidden.json",
        "pytorch_model.bin",
        "hf_quant_config.json",
        "modeling.py",
        "adapter_model.safetensors",
    ):
        (source / name).touch()
    folder = bring(source, tmp_path / "model", monkeypatch)
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == taken


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            lambda: transformers.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, head_dim=32),
            "model.layers.0.mlp.experts.gate_up_proj: expected linears, found weights of shape [4, 64, 256]: fused",
        ),
        (
            lambda: transformers.Qwen3MoeConfig(
                **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64
            ),
            "model.layers.0.mlp.experts.gate_up_proj: expected linears, found weights of shape [4, 128, 64]: fused",
        ),
        (
            lambda: transformers.GPT2Config(vocab_size=1024, n_embd=64, n_layer=2, n_head=4, bos_token_id=2),
            "transformer.h.0.attn.c_attn.weight: expected a Linear, found a Conv1D, whose weight is transposed",
        ),
    ],
    ids=["experts fused in the file", "experts fused at loading", "Conv1D"],
)
def test_what_is_no_plain_linear_is_refused(config, expected, untrained, tmp_path, refused):
    assert refused(write_model(config(), untrained / "model", tmp_path / "source")).startswith(expected)


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
        (dict(hidden_size=128), "lm_head.weight [1024, 64] is no parameter of LlamaForCausalLM"),
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
def test_a_config_that_cannot_be_used(change, expected, source, refused):
    change_json(source / "config.json", **change)
    assert refused(source).startswith(expected)


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
        (lambda _: {"score.weight": torch.ones(2, 64)}, "score.weight [2, 64] is no parameter of LlamaForCausalLM"),
    ],
    ids=["fp32", "fp16", "NaN", "infinite", "of another head"],
)
def test_weights_that_cannot_be_used(change, expected, source, refused):
    change_weights(source, change)
    assert refused(source) == expected


def test_weights_of_a_type_that_torch_cannot_quantize(source, refused):
    change_weights(source, lambda tensors: {name: each.to(torch.float8_e4m3fn) for name, each in tensors.items()})
    assert refused(source).startswith("model.safetensors: expected tensors of F64, F32, F16, BF16")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            WEIGHTS,
            LFS_POINTER,
            "model.safetensors: expected the file, found git-lfs's pointer to it; run `git lfs pull`",
        ),
        (
            "tokenizer.json",
            LFS_POINTER,
            "tokenizer.json: expected the file, found git-lfs's pointer to it; run `git lfs pull`",
        ),
        (WEIGHTS, "cut", "model.safetensors: the weights cannot be read"),
        ("config.json", "[]", "config.json: expected a mapping, found list"),
        ("config.json", "{", "config.json: not valid JSON"),
        ("tokenizer.json", "{", "the tokenizer cannot be loaded"),
        (
            "adapter_config.json",
            "{}",
            "adapter_config.json: expected a model without adapters, found one",
        ),
    ],
)
def test_a_file_that_cannot_be_used(name, content, expected, source, refused):
    (source / name).write_text(content)
    assert refused(source).startswith(expected)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        (
            {"a": "one.safetensors"},
            "one.safetensors: expected a file, as model.safetensors.index",
        ),
        ({"a": "../one.safetensors"}, "model.safetensors.index.json: weight_map: expected names of safetensors files"),
        ({}, "model.safetensors.index.json: weight_map: expected a file for each tensor, found {}"),
    ],
)
def test_an_index_of_files_that_are_not_there(weight_map, expected, source, refused):
    (source / WEIGHTS).rename(source / "other.safetensors")
    (source / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refused(source).startswith(expected)


def test_a_head_that_the_config_ties_and_the_file_does_not(source, refused, tmp_path, monkeypatch):
    change_json(source / "config.json", tie_word_embeddings=True)
    expected = "config.json: tie_word_embeddings: expected false, since lm_head.weight is not model.embed_tokens.weight"
    assert refused(source) == expected
    change_weights(source, lambda tensors: {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    bring(source, tmp_path / "tied", monkeypatch)


def test_of_two_sets_of_weights_the_one_that_transformers_loads_is_taken(source, tmp_path, monkeypatch):
    (source / f"{WEIGHTS}.index.json").write_text("{}")
    (source / "model-00001-of-00001.safetensors").touch()
    folder = bring(source, tmp_path / "model", monkeypatch)
    assert [path.name for path in folder.glob("*.safetensors*")] == [WEIGHTS]


def test_a_template_that_shows_lists_of_parts_alone(source, refused):
    template = "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    assert refused(source) == "the chat template: expected the texts of a conversation, found 'user:assistant:'"


TEMPLATES = {  # as the Hub's models of these names have them, in short
    "OLMo 2": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '\n' }}"
        "{% else %}{{ '<|assistant|>\n' + m.content + eos_token }}{{ '' if loop.last else '\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ("<|user|>\n", "<|assistant|>\n"),
        "<bos>",
    ),
    "Phi-3": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>\n", "<|end|>\n<|assistant|>\n"),  # the latter's second half alone would do too
        None,
    ),
    "SmolLM 2, whose bos is the mark of its turns": (
        "{% for m in messages %}{{ bos_token + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}",
        ("<bos>user\n", "<bos>assistant\n"),
        None,
    ),
    "one that thinks before it answers": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}",
        ("<|user|>", "<|assistant|>"),
        "<bos>",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_marks_of_a_template_are_proposed(source, name):
    template, marks, bos = TEMPLATES[name]
    (source / "chat_template.jinja").write_text(template)
    tokenizer = tokenization.load_tokenizer(source)
    assert turns.propose(tokenizer) == marks
    assert tokenization.template_bos(tokenizer) == bos
    turns.refuse_wrong_marks(tokenizer, "finetune", *marks)
    for wrong in (marks[::-1], (marks[0], marks[0]), ("<|nobody|>", marks[1])):
        with pytest.raises(InputError, match=r"finetune\.(instruction|response)_part: expected"):
            turns.refuse_wrong_marks(tokenizer, "finetune", *wrong)


def test_a_head_that_is_not_there(source, refused):
    tensors = load_file(source / WEIGHTS)
    del tensors["lm_head.weight"]
    save_file(tensors, source / WEIGHTS, {"format": "pt"})
    assert refused(source) == "the weights hold no lm_head.weight"


def test_buffers_of_old_checkpoints_are_passed_over(source, tmp_path, monkeypatch):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(source, lambda _: {name: torch.arange(8).bfloat16()})
    bring(source, tmp_path / "model", monkeypatch)


def change_tokenizer(source, change):
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(source / "tokenizer.json"))


def end_with_eos(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )


def test_a_tokenizer_that_ends_prompts(source, refused):
    change_tokenizer(source, end_with_eos)
    expected = "the tokenizer: expected at most a bos around a prompt, found ['<bos>', '<eos>'] added to it"
    assert refused(source) == expected


def test_a_tokenizer_whose_class_loses_spaces(source, refused, tmp_path, monkeypatch):
    """As DeepSeek-Coder's: a byte-level tokenizer.json, and a config that names Llama's class."""
    write_byte_level_tokenizer(source)
    change_json(source / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    message = refused(source)
    assert message.startswith("tokenizer.json: expected the tokens ['d', 'e', 'f', 'Ġ'")
    assert message.endswith(f"set tokenizer_class in {source / 'tokenizer_config.json'} to PreTrainedTokenizerFast")
    change_json(source / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    bring(source, tmp_path / "mended", monkeypatch)


def test_a_tokenizer_that_gives_no_text_back(source, refused):
    def lose(tokenizer):
        tokenizer.normalizer = None
        tokenizer.add_special_tokens(["return"])
        vocabulary = tokenizer.get_vocab()
        tokenizer.model = type(tokenizer.model)({"<unk>": 3} | {"a": vocabulary["a"]}, unk_token="<unk>")

    change_tokenizer(source, lose)
    assert refused(source).startswith('the tokenizer: expected "def f(x):')


def test_a_model_without_a_chat_template(source, refused):
    (source / "chat_template.jinja").unlink()
    assert refused(source) == "the tokenizer: expected a chat template, in chat_template.jinja, found none"


def test_a_template_that_refuses_a_system_message_is_fine(source, tmp_path, monkeypatch):
    template = source / "chat_template.jinja"
    line = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template.write_text(line + template.read_text())
    bring(source, tmp_path / "model", monkeypatch)


def no_post_processor(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])


@pytest.mark.parametrize("writes", [True, False], ids=["template writes bos", "template writes none"])
@pytest.mark.parametrize("adds", [True, False], ids=["tokenizer adds bos", "tokenizer adds none"])
def test_the_bos_is_the_templates_once(source, writes, adds):
    if not adds:
        change_tokenizer(source, no_post_processor)
    if not writes:
        template = source / "chat_template.jinja"
        template.write_text(template.read_text().replace("{{- bos_token -}}", ""))
    tokenizer = tokenization.load_tokenizer(source)
    assert tokenization.adds_bos(tokenization.load_as_is(source)) == adds
    assert tokenization.template_bos(tokenizer) == ("<bos>" if writes else None)
    rendered = tokenization.render(tokenizer, ["one", "two"])
    expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]  # as a server does with a conversation
    assert (expected[0] == tokenizer.bos_token_id) == writes
    for text in (rendered, rendered.removeprefix("<bos>")):
        assert tokenization.encode(tokenizer, [text]) == [expected]
    assert tokenizer("one")["input_ids"].count(tokenizer.bos_token_id) == writes


def test_what_a_text_passes_through_is_what_gets_a_gradient(untrained, tmp_path):
    """On a model that sees pictures, held against a forward pass of real numbers."""
    folder = write("gemma3", untrained / "model", tmp_path / "gemma3")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    model(input_ids=torch.tensor([[2, 5, 6]])).logits.sum().backward()
    expected = {name for name, each in model.named_parameters(remove_duplicate=False) if each.grad is not None}
    assert text_model.reached_parameters(models.without_weights(folder)) == expected
    assert model_folder.taken(folder)
