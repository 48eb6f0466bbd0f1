"""Compute the loss against the base in bf16: KL(base || model) on tokens of the texts, and cross-entropy.

    loss = (1 - weight) · cross-entropy / labels  +  weight · T² · KL(base || model at temperature T) / tokens

Labels and tokens are counted over the whole step. The logits of a large vocabulary are never held for more than a block
of tokens: a head computes them from the last hidden states, and the gradient of the states is taken immediately, as in
Liger's fused losses (Hsu et al. 2024). Liger's own losses are Triton kernels that run only on a GPU and do not know the
caps and scales of logits, which a model's own forward applies here.
"""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from int4_qat.checkpoint import heads
from int4_qat.checkpoint.heads import Reading
from int4_qat.tokenizer.turns import IGNORED
from int4_qat.training import compilation

Teacher = Callable[[dict], Reading]  # returns the base's reading of a batch, with states (batch, length, width)


def last_hidden_states(model: torch.nn.Module, inner: PreTrainedModel, batch: dict) -> torch.Tensor:
    """Return the states (batch, length, width) from which the head of `inner`, which `model` wraps, computes logits.

    The whole of `model` runs, so that every wrapper sees the pass; the head is asked for the logits of one token.
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


@torch.no_grad()
def kl(student: Reading, base: Reading, temperature: float = 1.0) -> torch.Tensor:
    """Return the sum over tokens of KL(base || student), in nats, with the logits of both divided by a temperature."""
    total = student.hidden.new_zeros((), dtype=torch.float32)
    for block in heads.blocks(len(student.hidden), student.head.vocabulary):
        logits, expected = (reading.head.logits(reading.hidden[block]) for reading in (student, base))
        total += fused(block_kl, logits, expected, temperature)
    return total


def loss(
    student: Reading, base: Reading, following: torch.Tensor, weights: tuple[float, float], temperature: float
) -> torch.Tensor:
    """Return weights[0] · (sum of cross-entropies) + weights[1] · (sum of KL(base || student)).

    `following` (tokens) has the ids that come next, IGNORED where no cross-entropy counts. The loss is differentiable
    with respect to the student's states.
    """
    return _Loss.apply(student.hidden, student.head, base, following, weights, temperature)


class _Loss(torch.autograd.Function):
    """The loss, computed block by block; each block's gradient is computed before the next block's logits."""

    @staticmethod
    def forward(ctx, hidden, head, base, following, weights, temperature):
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        scales = torch.tensor(weights, device=hidden.device)  # a compiled function is recompiled for every new float
        for block in heads.blocks(len(hidden), head.vocabulary):
            states, labels = hidden[block].detach().requires_grad_(), following[block] if weights[0] else None
            with torch.enable_grad():
                logits = head.logits(states)
            expected = base.head.logits(base.hidden[block])
            found, of_logits = fused(loss_and_gradient, logits.detach(), expected, labels, scales, temperature)
            (gradient[block],) = torch.autograd.grad(logits, states, of_logits)
            total += found
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, of_total):
        (gradient,) = ctx.saved_tensors
        return gradient * of_total, None, None, None, None, None


def fused(function: Callable, logits: torch.Tensor, *given):
    """Call a function on logits and other arguments; on a GPU, call it compiled into a few kernels."""
    return (compilation.compiled(function) if logits.is_cuda else function)(logits, *given)


def block_kl(logits: torch.Tensor, expected: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the sum over tokens of KL(expected || logits), an fp32 scalar, for logits (tokens, vocabulary)."""
    return divergence(softened(logits, temperature), softened(expected, temperature))


def loss_and_gradient(
    logits: torch.Tensor,
    expected: torch.Tensor,
    following: torch.Tensor | None,
    weights: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of a block, an fp32 scalar, and its gradient with respect to the logits, in their dtype.

    `logits` and `expected` are (tokens, vocabulary); without `following` there is no cross-entropy. Let q be the
    model's probabilities and p the base's. The gradient of KL(p || q) at temperature T is (q - p) / T. The gradient of
    the cross-entropy is q - 1 at the id that follows, and q elsewhere.
    """
    found, wanted = softened(logits, temperature), softened(expected, temperature)
    loss = weights[1] * divergence(found, wanted)
    gradient = weights[1] / temperature * (found.exp() - wanted.exp())
    if following is not None:
        own, ids = softened(logits, 1), torch.arange(logits.shape[-1], device=logits.device)
        loss = loss + weights[0] * torch.nn.functional.nll_loss(own, following, ignore_index=IGNORED, reduction="sum")
        of_labels = own.exp() - (ids == following.unsqueeze(-1)).float()
        gradient = gradient + weights[0] * (following != IGNORED).unsqueeze(-1) * of_labels
    return loss, gradient.to(logits.dtype)


def divergence(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the sum over tokens of KL(wanted || found), for log-probabilities (tokens, vocabulary)."""
    return torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True)


def softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the log-probabilities of logits at a temperature, in fp32."""
    logits = logits.float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)
