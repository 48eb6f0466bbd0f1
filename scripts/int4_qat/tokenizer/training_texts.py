"""Format MMLU questions with their answers as training texts: the recipe's two messages, in a chat template.

The texts equal those of the recipe byte for byte: its format_into_conversation, apply_chat_template,
removeprefix(bos). If the tokenizer adds no bos automatically, the template's stays in the text, so that a plain call of
the tokenizer gives it exactly once.

Rendering a chat template row by row is slow, but nearly every model's template only puts fixed text around each
message. So it is rendered once with marks in place of the messages, and Arrow joins the messages of the rows with the
pieces around the marks.
"""

import sys
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from int4_qat.data import mmlu
from int4_qat.tokenizer import tokenization

QUESTION_LEAD = "Choose the correct answer for the following question: "
CHOICES_LEAD = "\n\nChoices:\n"
ANSWER_LEAD = "The correct answer is "
ANSWER_END = "."
USER_MARK, ASSISTANT_MARK = "user\x00mark", "assistant\x00mark"
WHITE_SPACE = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())
COMPARED_ROWS = 8  # rows of each batch that are compared with the template's own rendering


class Template(NamedTuple):
    """The text that a chat template puts around the two messages, and whether it trims them."""

    start: str
    middle: str
    end: str
    trims: bool


def messages(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Return the user and the assistant message of each row, as in the recipe's format_into_conversation."""
    parts = [QUESTION_LEAD, batch["question"], CHOICES_LEAD]
    for index, letter in enumerate(mmlu.LETTERS):
        parts += [f"{letter}. ", pc.list_element(batch["choices"], index), "\n"]
    letters = pa.array(mmlu.LETTERS).take(batch["answer"])
    return concatenate(*parts[:-1]), concatenate(ANSWER_LEAD, letters, ANSWER_END)


def concatenate(*parts: pa.Array | str) -> pa.Array:
    """Return strings and columns of strings concatenated row by row."""
    return pc.binary_join_element_wise(*parts, "")


def added_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the bos that the tokenizer adds automatically and the texts therefore leave out; empty if it adds none."""
    return tokenizer.bos_token if tokenization.adds_bos(tokenizer) else ""


def render_rows(tokenizer: PreTrainedTokenizerBase, user: pa.Array, assistant: pa.Array) -> pa.Array:
    """Return the texts of a batch, rendered row by row; this is slow, but right for any template."""
    bos, pairs = added_bos(tokenizer), zip(user.to_pylist(), assistant.to_pylist(), strict=True)
    return pa.array([tokenization.render(tokenizer, pair).removeprefix(bos) for pair in pairs])


def read_template(tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """Return the pieces around the messages, or None if the template does not show each message exactly once."""
    text = tokenization.render(tokenizer, [USER_MARK, ASSISTANT_MARK])
    if text.count(USER_MARK) != 1 or text.count(ASSISTANT_MARK) != 1:
        return None
    start, rest = text.split(USER_MARK)
    middle, end = rest.split(ASSISTANT_MARK)
    trims = tokenization.render(tokenizer, [f"{USER_MARK} \n", ASSISTANT_MARK]) == text
    return Template(start.removeprefix(added_bos(tokenizer)), middle, end, trims)


def join(template: Template, user: pa.Array, assistant: pa.Array) -> pa.Array:
    """Return the texts of a batch without rendering any of them."""
    if template.trims:
        user = pc.utf8_trim(user, characters=WHITE_SPACE)
    return concatenate(template.start, user, template.middle, assistant, template.end)


def agrees(template: Template, tokenizer: PreTrainedTokenizerBase, user: pa.Array, assistant: pa.Array) -> bool:
    """Return whether joined rows, sampled across a batch, equal what the chat template renders."""
    sample = pa.array(range(0, len(user), max(1, len(user) // COMPARED_ROWS)))
    user, assistant = user.take(sample), assistant.take(sample)
    return join(template, user, assistant).equals(render_rows(tokenizer, user, assistant))
