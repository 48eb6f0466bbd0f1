"""Test that a tokenizer must decode to the same text, add at most a bos, and have a template with distinct turns."""

import pytest
from tokenizers import Tokenizer, processors

from families import bring, change_json, write_byte_level_tokenizer
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, turns


def test_a_template_that_shows_lists_of_parts_alone(spoiled, refused_model):
    template = "{% for m in messages %}{{ m.role }}:{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    (spoiled / "chat_template.jinja").write_text(template)
    assert (
        refused_model(spoiled) == "the chat template: expected the messages of a conversation, found 'user:assistant:'"
    )


TEMPLATES = {  # shortened templates of the Hub's models with these names
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
        ("<|user|>\n", "<|end|>\n<|assistant|>\n"),  # the second half of the latter would suffice
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
def test_the_marks_of_a_template_are_proposed(spoiled, name):
    template, marks, bos = TEMPLATES[name]
    (spoiled / "chat_template.jinja").write_text(template)
    tokenizer = tokenization.load_tokenizer(spoiled)
    assert turns.propose(tokenizer) == marks
    assert tokenization.template_bos(tokenizer) == bos
    turns.refuse_wrong_marks(tokenizer, "finetune", *marks)
    for wrong in (marks[::-1], (marks[0], marks[0]), ("<|nobody|>", marks[1])):
        with pytest.raises(InputError, match=r"finetune\.(instruction|response)_part: expected"):
            turns.refuse_wrong_marks(tokenizer, "finetune", *wrong)


def change_tokenizer(spoiled, change):
    tokenizer = Tokenizer.from_file(str(spoiled / "tokenizer.json"))
    change(tokenizer)
    tokenizer.save(str(spoiled / "tokenizer.json"))


def end_with_eos(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )


def test_a_tokenizer_that_ends_prompts(spoiled, refused_model):
    change_tokenizer(spoiled, end_with_eos)
    expected = "the tokenizer: expected only a bos around a prompt, found ['<bos>', '<eos>'] as well"
    assert refused_model(spoiled) == expected


def test_a_tokenizer_whose_class_loses_spaces(spoiled, refused_model, tmp_path, monkeypatch):
    """DeepSeek-Coder's is such a tokenizer: its tokenizer.json is byte-level, but its config names Llama's class."""
    write_byte_level_tokenizer(spoiled)
    change_json(spoiled / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    message = refused_model(spoiled)
    assert message.startswith("tokenizer.json: expected the tokens ['d', 'e', 'f', 'Ġ'")
    assert message.endswith(f"set tokenizer_class in {spoiled / 'tokenizer_config.json'} to PreTrainedTokenizerFast")
    change_json(spoiled / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    bring(spoiled, tmp_path / "mended", monkeypatch)


def test_a_tokenizer_that_gives_no_text_back(spoiled, refused_model):
    def lose(tokenizer):
        tokenizer.normalizer = None
        tokenizer.add_special_tokens(["return"])
        vocabulary = tokenizer.get_vocab()
        tokenizer.model = type(tokenizer.model)({"<unk>": 3} | {"a": vocabulary["a"]}, unk_token="<unk>")

    change_tokenizer(spoiled, lose)
    assert refused_model(spoiled).startswith('the tokenizer: expected "def f(x):')


def test_a_model_without_a_chat_template(spoiled, refused_model):
    (spoiled / "chat_template.jinja").unlink()
    assert refused_model(spoiled) == "the tokenizer: expected a chat template, in chat_template.jinja, found none"


def test_a_template_that_refuses_a_system_message_is_fine(spoiled, tmp_path, monkeypatch):
    template = spoiled / "chat_template.jinja"
    line = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    template.write_text(line + template.read_text())
    bring(spoiled, tmp_path / "model", monkeypatch)


def no_post_processor(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])


@pytest.mark.parametrize("writes", [True, False], ids=["template writes bos", "template writes none"])
@pytest.mark.parametrize("adds", [True, False], ids=["tokenizer adds bos", "tokenizer adds none"])
def test_the_bos_is_the_templates_once(spoiled, writes, adds):
    if not adds:
        change_tokenizer(spoiled, no_post_processor)
    if not writes:
        template = spoiled / "chat_template.jinja"
        template.write_text(template.read_text().replace("{{- bos_token -}}", ""))
    tokenizer = tokenization.load_tokenizer(spoiled)
    assert tokenization.adds_bos(tokenization.load_as_is(spoiled)) == adds
    assert tokenization.template_bos(tokenizer) == ("<bos>" if writes else None)
    rendered = tokenization.render(tokenizer, ["one", "two"])
    expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]  # as a server tokenizes a conversation
    assert (expected[0] == tokenizer.bos_token_id) == writes
    for text in (rendered, rendered.removeprefix("<bos>")):
        assert tokenization.encode(tokenizer, [text]) == [expected]
    assert tokenizer("one")["input_ids"].count(tokenizer.bos_token_id) == writes
