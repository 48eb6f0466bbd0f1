"""The loss against the base in bf16, block by block: KL(base || model) on tokens of the texts, and cross-entropy.

    loss = (1 - weight) · cross-entropy / labels  +  weight · T² · KL(base || model at temperature T) / tokens

Labels and tokens are those of the whole step. The logits of a large vocabulary are never held for more than a block of
tokens: a head makes them of the last hidden states, and the gradient of the states is taken at once, as Liger's fused
losses do it (Hsu et al. 2024). Liger's own run as Triton kernels on a GPU alone, and know no caps and scales of logits,
which a model's own forward applies here.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from int4_qat.checkpoint import heads
from int4_qat.checkpoint.heads import Head, Reading
from int4_qat.tokenizer.turns import IGNORED

BlockLoss = Callable[[torch.Tensor, slice], torch.Tensor]  # the sum over a block, of its states (tokens, width)
Teacher = Callable[[dict], Reading]  # what the base makes of a batch: states (batch, length, width)


def last_hidden_states(model: torch.nn.Module, inner: PreTrainedModel, batch: dict) -> torch.Tensor:
    """Return (batch, length, width), of which the head of `inner`, as `model` wraps it, would make logits.

    The whole model runs, so that what wraps it sees the pass; its head is asked for the logits of one token.
    """
    found = []
    handle = inner.base_model.register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    try:
        model(**batch, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return found[-1]


def compared(labels: torch.Tensor, position_ids: torch.Tensor, tokens: str) -> torch.Tensor:
    """Return which of the states (batch, length - 1) predict a token on which the models are compared."""
    return labels[:, 1:] != IGNORED if tokens == "response" else position_ids[:, 1:] > 0


def kl(student: Reading, base: Reading, temperature: float = 1.0) -> torch.Tensor:
    """Return the sum over tokens of KL(base || student), in nats, the logits of both divided by a temperature."""

    def of_block(hidden: torch.Tensor, block: slice) -> torch.Tensor:
        with torch.no_grad():
            expected = log_probabilities(base.head, base.hidden[block], temperature)
        return divergence(expected, log_probabilities(student.head, hidden, temperature))

    return by_blocks(student, of_block)


def loss(
    student: Reading, base: Reading, following: torch.Tensor, weights: tuple[float, float], temperature: float
) -> torch.Tensor:
    """Return weights[0] · the sum of cross-entropies + weights[1] · that of KL(base || student).

    following (tokens) has the ids that come next, IGNORED where no cross-entropy counts.
    """

    def of_block(hidden: torch.Tensor, block: slice) -> torch.Tensor:
        logits = student.head.logits(hidden).float()
        with torch.no_grad():
            expected = log_probabilities(base.head, base.hidden[block], temperature)
        total = weights[1] * divergence(expected, softened(logits, temperature))
        if weights[0]:
            sums = torch.nn.functional.cross_entropy(logits, following[block], ignore_index=IGNORED, reduction="sum")
            total = total + weights[0] * sums
        return total

    return by_blocks(student, of_block)


def log_probabilities(head: Head, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return (tokens, vocabulary) in fp32 of hidden states (tokens, width)."""
    return softened(head.logits(hidden).float(), temperature)


def softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log-probabilities of logits at a temperature."""
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def divergence(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of KL(expected || found), of log-probabilities (tokens, vocabulary)."""
    return torch.nn.functional.kl_div(found, expected, reduction="sum", log_target=True)


def by_blocks(student: Reading, of_block: BlockLoss) -> torch.Tensor:
    """Return the sum of a loss over all blocks of a reading, differentiable with respect to its states."""
    blocks = heads.blocks(len(student.hidden), student.head.vocabulary)
    return _SumOfBlocks.apply(student.hidden, of_block, blocks)


class _SumOfBlocks(torch.autograd.Function):
    """The sum of a loss over blocks of states; each block's gradient is made before the next block's logits."""

    @staticmethod
    def forward(ctx, hidden, of_block, blocks):
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.zeros_like(hidden)
        for block in blocks:
            part = hidden[block].detach().requires_grad_(ctx.needs_input_grad[0])
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                part_loss = of_block(part, block)
            if ctx.needs_input_grad[0]:
                (gradient[block],) = torch.autograd.grad(part_loss, part)
            total += part_loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, of_total):
        (gradient,) = ctx.saved_tensors
        return gradient * of_total, None, None
