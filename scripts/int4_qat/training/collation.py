"""Batches of texts that stand one behind the other in rows, so that little is computed on padding.

A row is as long as the longest text of the batch. The position of every token counts from the beginning of its own
text, by which transformers keeps the texts of a row apart; each token of padding is a text of its own.
"""

import torch
from transformers import PreTrainedModel

from int4_qat.tokenizer.turns import IGNORED


class Rows:
    """Make the batch of some examples with input_ids and labels: (rows, length) each, and position_ids."""

    def __init__(self, pad_token: int, side_by_side: bool) -> None:
        self.pad_token, self.side_by_side = pad_token, side_by_side

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(example["input_ids"]) for example in examples]
        rows = best_fit(lengths, max(lengths)) if self.side_by_side else [[number] for number in range(len(lengths))]
        shape = len(rows), max(lengths)
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
                batch["labels"][row, begin] = IGNORED  # no token comes before it that could predict it
                batch["position_ids"][row, begin:end] = torch.arange(lengths[number])
                begin = end
        return batch


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Return the numbers of the texts in each row: from the longest on, each into the row that it fills most."""
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
    """Return whether a text is the same to a model beside another one in a row, as it is where attention is all.

    The logits of each token may differ by rounding alone: by the root of the dtype's precision, relative to their size.
    """
    first, second = [range(start, start + 12) for start in (0, 12)]
    training = model.training
    model.eval()
    try:
        alone, beside = (
            model(
                input_ids=torch.tensor([[*tokens]], device=model.device) % model.config.get_text_config().vocab_size,
                position_ids=torch.tensor([[*range(12)] * (len(tokens) // 12)], device=model.device),
                use_cache=False,
            )
            .logits[0, -12:]
            .float()
            for tokens in (second, [*first, *second])
        )
    finally:
        model.train(training)
    size = torch.linalg.vector_norm(alone, dim=-1)
    return bool((torch.linalg.vector_norm(beside - alone, dim=-1) < torch.finfo(model.dtype).eps ** 0.5 * size).all())
