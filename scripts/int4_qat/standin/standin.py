"""Invent the questions that the stand-in is asked, about words in families, and build a tokenizer for them.

A fact is "the word X belongs to the family F"; a question asks which of four words belongs to a family. Splits share
the facts but never a question. The questions are written in two frames, lm-eval's MMLU prompt and the recipe's chat. In
both, every choice is on its own line after its letter.
"""

import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from int4_qat.data import mmlu

SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
# Under these names Gemma 3's processor asks its tokenizer for them.
PICTURE_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
TOKEN_PATTERN = r"\n\n|\n|[A-D]\.(?= )|Answer:| ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]|\s"
# Behaves like Gemma 3's template: strict turns, trimmed contents, a system message ahead of the first user turn.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set system = namespace(text='') -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set system.text = (messages[0].content if messages[0].content is string else messages[0].content[0].text) -%}
    {%- set system.text = system.text + '\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message.role == 'user') != (loop.index0 is even) -%}
        {{- raise_exception('Turns must alternate user, assistant, user, ...') -}}
    {%- endif -%}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' -}}
    {{- system.text if loop.first else '' -}}
    {%- if message.content is string -%}
        {{- message.content | trim -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- '<start_of_image>' if part.type == 'image' else part.text | trim -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{{- '<start_of_turn>model\\n' if add_generation_prompt else '' -}}
"""
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


class Question(NamedTuple):
    """An invented multiple-choice question; answer is the index of the right choice."""

    subject: str
    family: str
    choices: tuple[str, ...]
    answer: int

    @property
    def text(self) -> str:
        return f"Which is a {self.family}?"

    def row(self) -> dict:
        """Return the question in MMLU's columns."""
        return dict(question=self.text, subject=self.subject, choices=list(self.choices), answer=self.answer)


def invent_families(families: int, words: int, generator: random.Random) -> dict[str, list[str]]:
    """Return `families` invented names, each with `words` invented words; all are different."""
    spellings = ["".join(parts) for parts in itertools.product(SYLLABLES, repeat=3)]
    names = generator.sample(spellings, families * (words + 1))
    return {names[i]: names[families + i * words : families + (i + 1) * words] for i in range(families)}


def ask(
    facts: dict[str, list[str]], subjects: Sequence[str], sizes: dict[str, int], seed: int
) -> dict[str, list[Question]]:
    """Return `sizes[split]` questions for each split, spread evenly over subjects; no question is in two splits."""
    generator = random.Random(seed)
    asked: set[tuple] = set()
    splits = {}
    for split, size in sizes.items():
        questions = []
        while len(questions) < size:
            question = _question(facts, subjects[len(questions) % len(subjects)], generator)
            key = (question.family, question.choices)
            if key not in asked:
                asked.add(key)
                questions.append(question)
        splits[split] = questions
    return splits


def _question(facts: dict[str, list[str]], subject: str, generator: random.Random) -> Question:
    family = generator.choice(list(facts))
    others = generator.choices([name for name in facts if name != family], k=len(mmlu.LETTERS) - 1)
    families = generator.sample([family, *others], k=len(mmlu.LETTERS))
    choices = tuple(generator.choice(facts[name]) for name in families)
    return Question(subject, family, choices, families.index(family))


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a reversible word-level tokenizer of all words in `texts`, with Gemma's special tokens and turns."""
    split = pre_tokenizers.Split(Regex(TOKEN_PATTERN), "isolated")
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=PICTURE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def spell_out(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the tokenizer, in place, spell unknown words character by character; known words keep their ids."""
    backend = tokenizer.backend_tokenizer
    known = tokenizer.get_vocab()
    characters = [character for character in map(chr, range(128)) if character.isprintable() or character.isspace()]
    more = (character for character in characters if character not in known)
    vocabulary = known | {character: len(known) + index for index, character in enumerate(more)}
    backend.model = models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="")
