"""Write the training texts: every question with its answer, in the chat template of the model's own tokenizer.

The texts are, byte for byte, those of the recipe: its format_into_conversation, apply_chat_template,
removeprefix(bos). Where the tokenizer adds no bos by itself, the template's stays in the text, so that a plain call of
the tokenizer gives it exactly once.

A chat template is slow, row by row; but for nearly every model it only puts fixed text around each message. So it is
rendered once with marks in place of the messages, the rows are joined around the pieces by arrow, and rows spread over
the data are compared with the template itself. A template that does more than that is rendered row by row, and the log
says so.

    python scripts/format_mmlu.py --mmlu resources/mmlu/auxiliary_train.parquet \\
        --tokenizer resources/models/demo --output results/demo/train.parquet
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from int4_qat import errors, files, mmlu, mmlu_parquet, tokenization
from int4_qat.errors import InputError

QUESTION_LEAD = "Choose the correct answer for the following question: "
CHOICES_LEAD = "\n\nChoices:\n"
ANSWER_LEAD = "The correct answer is "
ANSWER_END = "."
USER_MARK, ASSISTANT_MARK = "user\x00mark", "assistant\x00mark"
WHITE_SPACE = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())
COMPARED_ROWS = 8  # of each batch, against the template itself
SCHEMA = pa.schema([("text", pa.string()), ("subject", pa.string())])


class Template(NamedTuple):
    """What a chat template puts around the two messages, and whether it trims them."""

    start: str
    middle: str
    end: str
    trims: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmlu", required=True, type=Path, help="parquet with question, subject, choices, answer")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder of a model with a chat template")
    parser.add_argument("--output", required=True, type=Path, help="parquet with text and subject")
    arguments = parser.parse_args()
    tokenizer = tokenization.load_as_is(arguments.tokenizer)
    if tokenizer.chat_template is None:
        raise InputError(f"{arguments.tokenizer}: the tokenizer has no chat template")
    format_split(arguments.mmlu, tokenizer, arguments.output)


def format_split(source: Path, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Stream `source` into `output`, a batch of rows at a time."""
    template = read_template(tokenizer)
    rows = mmlu_parquet.open_file(source, mmlu_parquet.SCHEMA.names).metadata.num_rows
    progress = tqdm(total=rows, unit=" rows", desc="format", mininterval=1)
    with files.whole(output) as unfinished, pq.ParquetWriter(unfinished, SCHEMA) as writer:
        for batch in mmlu_parquet.read_batches(source, mmlu_parquet.SCHEMA.names):
            user, assistant = messages(batch)
            if template and not agrees(template, tokenizer, user, assistant):
                print("the chat template changes its messages: rendering row by row", file=sys.stderr)
                template = None
            text = join(template, user, assistant) if template else render_rows(tokenizer, user, assistant)
            writer.write_batch(pa.record_batch([text, batch["subject"]], schema=SCHEMA))
            progress.update(batch.num_rows)


def messages(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """The user's and the assistant's message of each row, as in the recipe's format_into_conversation."""
    parts = [QUESTION_LEAD, batch["question"], CHOICES_LEAD]
    for index, letter in enumerate(mmlu.LETTERS):
        parts += [f"{letter}. ", pc.list_element(batch["choices"], index), "\n"]
    letters = pa.array(mmlu.LETTERS).take(batch["answer"])
    return concatenate(*parts[:-1]), concatenate(ANSWER_LEAD, letters, ANSWER_END)


def concatenate(*parts: pa.Array | str) -> pa.Array:
    """Strings and columns of strings, row by row."""
    return pc.binary_join_element_wise(*parts, "")


def added_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the bos that the tokenizer adds by itself, which the texts therefore leave out; or an empty text."""
    return tokenizer.bos_token if tokenization.adds_bos(tokenizer) else ""


def render_rows(tokenizer: PreTrainedTokenizerBase, user: pa.Array, assistant: pa.Array) -> pa.Array:
    """Return the texts of a batch the slow way, which is right for any template."""
    bos, pairs = added_bos(tokenizer), zip(user.to_pylist(), assistant.to_pylist(), strict=True)
    return pa.array([tokenization.render(tokenizer, pair).removeprefix(bos) for pair in pairs])


def read_template(tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """Return the pieces around the messages; None if the template does not show each message exactly once."""
    text = tokenization.render(tokenizer, [USER_MARK, ASSISTANT_MARK])
    if text.count(USER_MARK) != 1 or text.count(ASSISTANT_MARK) != 1:
        return None
    start, rest = text.split(USER_MARK)
    middle, end = rest.split(ASSISTANT_MARK)
    trims = tokenization.render(tokenizer, [f"{USER_MARK} \n", ASSISTANT_MARK]) == text
    return Template(start.removeprefix(added_bos(tokenizer)), middle, end, trims)


def join(template: Template, user: pa.Array, assistant: pa.Array) -> pa.Array:
    """The texts of a batch, without rendering any."""
    if template.trims:
        user = pc.utf8_trim(user, characters=WHITE_SPACE)
    return concatenate(template.start, user, template.middle, assistant, template.end)


def agrees(template: Template, tokenizer: PreTrainedTokenizerBase, user: pa.Array, assistant: pa.Array) -> bool:
    """Whether rows spread over a batch come out as the chat template renders them."""
    sample = pa.array(range(0, len(user), max(1, len(user) // COMPARED_ROWS)))
    user, assistant = user.take(sample), assistant.take(sample)
    return join(template, user, assistant).equals(render_rows(tokenizer, user, assistant))


if __name__ == "__main__":
    errors.run(main)
