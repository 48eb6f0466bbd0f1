"""Pack running text into rows: windows of max_seq_length tokens, of which each text gives its share."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from int4_qat.config import shares
from int4_qat.config.recipe import Recipe
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import pieces, turns, windows

HELD_OUT = 8  # windows of all texts together; one of each text, if there are more texts


class Windows(NamedTuple):
    """Token ids and labels, (windows, length) each."""

    input_ids: np.ndarray
    labels: np.ndarray

    def take(self, numbers: np.ndarray | list[int]) -> "Windows":
        """Return some of the windows, by their numbers."""
        return Windows(self.input_ids[numbers], self.labels[numbers])


def rows(texts: dict[str, Path], tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> tuple[Windows, Windows]:
    """Return the windows that the steps of a training take, and those that are held out, none without eval_steps.

    Raise InputError if a text is too short.
    """
    weights = {name: recipe.texts[name] for name in sorted(texts)}
    wanted = shares.of_texts(weights, shares.rows_of(vars(recipe)))
    held_out = held_out_shares(weights) if recipe.eval_steps else dict.fromkeys(weights, 0)
    drawn = [draw(name, texts[name], tokenizer, recipe, wanted[name], held_out[name]) for name in weights]
    train, kept = (joined([pair[side] for pair in drawn]) for side in (0, 1))
    return train.take(interleaved(list(wanted.values()))), kept


def held_out_shares(weights: dict[str, float]) -> dict[str, int]:
    """Return how many windows of each text are held out: one, and its share of the rest."""
    return {name: 1 + share for name, share in shares.of_texts(weights, max(HELD_OUT - len(weights), 0)).items()}


def interleaved(counts: list[int]) -> np.ndarray:
    """Return an order for rows given text by text, in which every run of rows has roughly the overall shares."""
    places = [(np.arange(count) + 0.5) / count for count in counts]
    return np.argsort(np.concatenate(places), kind="stable")


def draw(
    name: str, path: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, train: int, held_out: int
) -> tuple[Windows, Windows]:
    """Return `train` windows of a text and `held_out` others, in an order drawn by the recipe's seed.

    A text with fewer windows is repeated, and a printed line says so. Raise InputError if none is left to train on.
    """
    generator = random.Random(f"{recipe.seed} {name}")
    found = read(path, tokenizer, recipe, train + held_out, generator)
    numbers = generator.sample(range(len(found.labels)), len(found.labels))
    kept, others = numbers[:held_out], numbers[held_out:]
    if not others:
        expected = f"{held_out + 1} windows of {recipe.max_seq_length} tokens or more"
        raise InputError(f"{path}: expected {expected}, found {len(numbers)}")
    if train > len(others):
        print(f"{name}: each of {len(others)} windows is trained on {train / len(others):.1f} times")
    return found.take(repeated(others, train, generator)), found.take(kept)


def repeated(numbers: list[int], count: int, generator: random.Random) -> list[int]:
    """Return `count` of the given numbers: all in a random order, then all in another random order, and so on."""
    order: list[int] = []
    while len(order) < count:
        order += generator.sample(numbers, len(numbers))
    return order[:count]


def read(
    path: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, count: int, generator: random.Random
) -> Windows:
    """Return `count` windows of a file or a few more, or all of them if it has fewer."""
    head, label = windows.head(tokenizer), labelling(path, tokenizer, recipe)
    ids, labels = [], []
    enough = count * (recipe.max_seq_length - len(head))
    for tokens in pieces.until(pieces.tokens(path, tokenizer, generator), enough):
        ids.append(np.array(tokens, np.int32))
        labels.append(np.array(label(tokens), np.int32))
    length = recipe.max_seq_length
    return Windows(windows.whole(ids, head, length), windows.whole(labels, [turns.IGNORED] * len(head), length))


def labelling(path: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Callable[[list[int]], list[int]]:
    """Return a function that labels the tokens of a text: responses to questions, and nothing in a general text."""
    if path.suffix != pieces.TABLE:
        return lambda tokens: [turns.IGNORED] * len(tokens)
    marks = turns.ids_of(tokenizer, recipe.instruction_part), turns.ids_of(tokenizer, recipe.response_part)
    return lambda tokens: turns.response_labels(tokens, *marks)


def joined(parts: list[Windows]) -> Windows:
    """Return the windows of several texts, one text after the other."""
    return Windows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
