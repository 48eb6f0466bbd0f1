"""The rows of a training: tokens of each text, and labels for the answers alone."""

from pathlib import Path
from typing import NamedTuple

import datasets
from transformers import PreTrainedTokenizerBase

from int4_qat.system import scratch
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, turns
from int4_qat.training.recipe import Recipe


class Rows(NamedTuple):
    """What is trained on, and what is held out to measure on."""

    train: datasets.Dataset
    held_out: datasets.Dataset | None


def tokenize(texts: dict[str, Path], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, work: Path) -> Rows:
    rows = tokenize_questions(texts["questions"], tokenizer, recipe, work)
    if recipe.eval_steps is None:
        return Rows(rows, None)
    return Rows(rows.select(range(len(rows) - 8)), rows.select(range(len(rows) - 8, len(rows))))


def tokenize_questions(texts: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, work: Path) -> datasets.Dataset:
    """Return input_ids and labels of every text; raise InputError that names a row in which nothing would be learned.

    The tokens are the recipe's: bos, the text as rendered, no eos. The labels leave out everything up to and
    including each response_part, and from each instruction_part on.
    """
    instruction, response = (turns.ids_of(tokenizer, mark) for mark in (recipe.instruction_part, recipe.response_part))
    cut = 0

    def encode_batch(batch: dict, rows: list[int]) -> dict:
        nonlocal cut
        tokens = tokenization.encode(tokenizer, batch["text"])
        cut += sum(len(row) > recipe.max_seq_length for row in tokens)
        tokens = [row[: recipe.max_seq_length] for row in tokens]
        labels = [turns.response_labels(row, instruction, response) for row in tokens]
        for row, row_labels in zip(rows, labels, strict=True):
            if all(label == turns.IGNORED for label in row_labels):
                raise InputError(
                    f"{texts}, row {row + 1}: no token counts in the loss; expected '{recipe.response_part.strip()}' "
                    f"and an answer within max_seq_length {recipe.max_seq_length}"
                )
        return {"input_ids": tokens, "labels": labels}

    with scratch.plain(texts) as path:
        rows = datasets.Dataset.from_parquet(str(path), columns=["text"], cache_dir=str(work))
    tokenized = rows.map(encode_batch, batched=True, with_indices=True, remove_columns=["text"], desc="tokenize")
    if cut:
        print(f"{cut} of {len(tokenized)} texts are cut at max_seq_length {recipe.max_seq_length}")
    return tokenized
