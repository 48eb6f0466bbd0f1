"""Make the rows of a training: tokens of each text, and labels for the answers only."""

from pathlib import Path
from typing import NamedTuple

import datasets
from transformers import PreTrainedTokenizerBase

from int4_qat.system import scratch
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, turns
from int4_qat.training import packing
from int4_qat.training.recipe import Recipe

HELD_OUT_ROWS = 64  # questions at most, and never more than a tenth of them


class Rows(NamedTuple):
    """Rows of input_ids and labels: those to train on and, if the recipe has eval_steps, those held out."""

    train: datasets.Dataset
    held_out: datasets.Dataset | None


def tokenize(texts: dict[str, Path], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, work: Path) -> Rows:
    """Return the rows of a recipe's texts: windows of running text with packing, otherwise one row per question.

    Raise InputError if the texts are not those that the recipe weighs, or if they are too short.
    """
    if texts.keys() != recipe.texts.keys():
        raise InputError(f"--texts: expected {', '.join(sorted(recipe.texts))}, found {', '.join(sorted(texts))}")
    if recipe.packing:
        train, held_out = map(dataset_of, packing.rows(texts, tokenizer, recipe))
        return Rows(train, held_out if recipe.eval_steps else None)
    (path,) = texts.values()
    rows = questions(path, tokenizer, recipe, work)
    return divided(path, rows) if recipe.eval_steps else Rows(rows, None)


def dataset_of(windows: packing.Windows) -> datasets.Dataset:
    """Return windows as the rows of a dataset."""
    return datasets.Dataset.from_dict(windows._asdict())


def divided(path: Path, rows: datasets.Dataset) -> Rows:
    """Return the questions to train on, and the last ones, which are held out; raise InputError if they are too few."""
    count = len(rows) - min(HELD_OUT_ROWS, len(rows) // 10)
    if count == len(rows):
        raise InputError(f"{path}: expected 10 questions or more, since eval_steps holds out a tenth, found {count}")
    return Rows(rows.select(range(count)), rows.select(range(count, len(rows))))


def questions(texts: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, work: Path) -> datasets.Dataset:
    """Return input_ids and labels of every text; raise InputError that names a row in which nothing would be learned.

    The tokens are the recipe's: bos, the text as rendered, no eos. The labels leave out everything up to and
    including each response_part, and everything from each instruction_part on.
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
                    f"{texts}, row {row + 1}: expected '{recipe.response_part.strip()}' and an answer within "
                    f"max_seq_length {recipe.max_seq_length}, found no token that counts in the loss"
                )
        return {"input_ids": tokens, "labels": labels}

    with scratch.plain(texts) as path:
        rows = datasets.Dataset.from_parquet(str(path), columns=["text"], cache_dir=str(work))
    tokenized = rows.map(encode_batch, batched=True, with_indices=True, remove_columns=["text"], desc="tokenize")
    if cut:
        print(f"{cut} of {len(tokenized)} texts were cut at max_seq_length {recipe.max_seq_length}")
    return tokenized
