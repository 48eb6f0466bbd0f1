"""Collate texts into batches with several texts in each row, so that little is computed on padding.

A row is as long as the longest text of the batch. If texts differ in length, that is rounded up to a multiple of
MULTIPLE, so that a GPU's kernels get even lengths and few different ones. The position of every token counts from the
beginning of its own text; transformers keeps the texts of a row apart by these positions. Each token of padding is a
text of its own.
"""

import torch
from transformers import PreTrainedModel

from int4_qat.tokenizer.turns import IGNORED

MULTIPLE = 16  # tokens
PART = 4096  # tokens that go through the model at once, padding included
PART_OF_MERGED = 8192  # more, since each part recomputes the deployed weight of every linear
PROBE = 12  # tokens


class Collator:
    """Collates examples with input_ids and labels into a batch of both and position_ids, (rows, length) each."""

    def __init__(self, pad_token: int, side_by_side: bool) -> None:
        self.pad_token, self.side_by_side = pad_token, side_by_side

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        room = max(lengths) if len(set(lengths)) == 1 else -(-max(lengths) // MULTIPLE) * MULTIPLE
        rows = best_fit(lengths, room) if self.side_by_side else [[number] for number in range(len(lengths))]
        shape = len(rows), room
        batch = {
            "input_ids": torch.full(shape, self.pad_token),
            "labels": torch.full(shape, IGNORED),
            "position_ids": torch.zeros(shape, dtype=torch.long),
        }
        for row, numbers in enumerate(rows):
            begin = 0
            for number in numbers:
                end = begin + lengths[number]
                batch["input_ids"][row, begin:end] = torch.as_tensor(examples[number]["input_ids"])
                batch["labels"][row, begin:end] = torch.as_tensor(examples[number]["labels"])
                batch["labels"][row, begin] = IGNORED  # no token comes before this one that could predict it
                batch["position_ids"][row, begin:end] = torch.arange(lengths[number])
                begin = end
        return batch


def parts(batch: dict[str, torch.Tensor], tokens: int) -> list[dict[str, torch.Tensor]]:
    """Return a batch as parts of at most this number of tokens, each of at least one row."""
    rows = max(1, tokens // batch["input_ids"].shape[1])
    pieces = zip(*(tensor.split(rows) for tensor in batch.values()), strict=True)
    return [dict(zip(batch, piece, strict=True)) for piece in pieces]


def parts_of_padded(batch: dict[str, torch.Tensor], tokens: int) -> list[dict[str, torch.Tensor]]:
    """Return a batch with one text per row as parts of at most this number of tokens, longest texts first.

    `attention_mask` (rows, length) is 0 for padding, on which a part spends only what its longest text needs.
    """
    texts = batch["attention_mask"].cpu()  # asks a GPU once, and not for each part
    lengths, order = texts.sum(1).sort(descending=True, stable=True)
    found, begin = [], 0
    while begin < len(order):
        rows = order[begin : begin + max(1, tokens // int(lengths[begin]))]
        read = texts[rows].any(0).nonzero()
        columns = slice(int(read.min()), int(read.max()) + 1)
        found.append({name: tensor[rows, columns] for name, tensor in batch.items()})
        begin += len(rows)
    return found


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Return the numbers of the texts in each row; from the longest on, each goes into the row that it fills most."""
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fitting = [row for row, left in enumerate(free) if left >= lengths[number]]
        if not fitting:
            rows.append([])
            free.append(room)
            fitting = [len(rows) - 1]
        row = min(fitting, key=free.__getitem__)
        rows[row].append(number)
        free[row] -= lengths[number]
    return rows


@torch.no_grad()
def keeps_apart(model: PreTrainedModel) -> bool:
    """Return whether a model reads a text that follows another one in a row as it reads the text alone.

    Replacing the first text must not change a bit of the second one's logits. Each token's logits may differ from those
    of the text alone by rounding only: relative to their size, by the square root of the dtype's precision.
    """
    first, other, second = (torch.arange(begin, begin + PROBE) for begin in range(0, 3 * PROBE, PROBE))
    training = model.training
    model.eval()
    try:
        alone, beside, changed = (last_logits(model, texts) for texts in ([second], [first, second], [other, second]))
    finally:
        model.train(training)
    far = torch.linalg.vector_norm(beside - alone, dim=-1) > torch.finfo(model.dtype).eps ** 0.5 * (
        torch.linalg.vector_norm(alone, dim=-1)
    )
    return torch.equal(beside, changed) and not far.any()


def last_logits(model: PreTrainedModel, texts: list[torch.Tensor]) -> torch.Tensor:
    """Return the logits of the last of several texts in one row, fp32 (tokens, vocabulary)."""
    ids = torch.cat(texts) % model.config.get_text_config().vocab_size
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    row, positions = (numbers[None].to(model.device) for numbers in (ids, positions))
    return model(input_ids=row, position_ids=positions, use_cache=False).logits[0, -len(texts[-1]) :].float()
