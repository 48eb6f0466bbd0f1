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
from int4_qat.checkpoint.heads import Reading
from int4_qat.tokenizer.turns import IGNORED
from int4_qat.training import compilation

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
        return sums(student.head.logits(hidden), base_logits(base, block), None, temperature)[0]

    return by_blocks(student, of_block)


def loss(
    student: Reading, base: Reading, following: torch.Tensor, weights: tuple[float, float], temperature: float
) -> torch.Tensor:
    """Return weights[0] · the sum of cross-entropies + weights[1] · that of KL(base || student).

    following (tokens) has the ids that come next, IGNORED where no cross-entropy counts.
    """

    def of_block(hidden: torch.Tensor, block: slice) -> torch.Tensor:
        labels = following[block] if weights[0] else None
        divergence, cross_entropy = sums(student.head.logits(hidden), base_logits(base, block), labels, temperature)
        return weights[1] * divergence + (weights[0] * cross_entropy if weights[0] else 0)

    return by_blocks(student, of_block)


@torch.no_grad()
def base_logits(base: Reading, block: slice) -> torch.Tensor:
    """Return the logits (tokens, vocabulary) of a block of the base's states."""
    return base.head.logits(base.hidden[block])


def sums(
    logits: torch.Tensor, expected: torch.Tensor, following: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the sums over tokens of KL(expected || logits) and of the cross-entropy, of logits (tokens, vocabulary).

    Both are fp32 scalars, in few kernels on a GPU; without ids that follow there is no cross-entropy.
    """
    return (compilation.compiled(_sums) if logits.is_cuda else _sums)(logits, expected, following, temperature)


def _sums(
    logits: torch.Tensor, expected: torch.Tensor, following: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    found, wanted = (softened(each.float(), temperature) for each in (logits, expected))
    divergence = torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True)
    if following is None:
        return divergence, None
    given = torch.nn.functional.cross_entropy(logits.float(), following, ignore_index=IGNORED, reduction="sum")
    return divergence, given


def softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log-probabilities of logits at a temperature."""
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


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
