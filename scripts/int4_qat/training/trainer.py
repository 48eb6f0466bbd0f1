"""trl's trainer for any device, and distillation from the frozen base."""

import torch
from trl import SFTTrainer

from int4_qat.tokenizer.turns import IGNORED
from int4_qat.training import qat


class AnyDeviceSFTTrainer(SFTTrainer):
    """trl computes the loss in a Triton kernel that no CPU has; there it is the model's own cross-entropy.

    Distillation needs the logits, which that kernel does not build: it takes the model's own everywhere.
    """

    distillation_weight = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.distillation_weight > 0:
            teacher = self.teacher(model, inputs)
            cross_entropy, student = super(SFTTrainer, self).compute_loss(model, inputs, True, num_items_in_batch)
            divergence = kl_divergence(teacher, predictions(student.logits, inputs["labels"]), num_items_in_batch)
            loss = (1 - self.distillation_weight) * cross_entropy + self.distillation_weight * divergence
            return (loss, student) if return_outputs else loss
        trainer_class = super() if inputs["input_ids"].is_cuda else super(SFTTrainer, self)
        return trainer_class.compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def teacher(self, model: torch.nn.Module, inputs: dict) -> torch.Tensor:
        """What the frozen base predicts of the same batch."""
        with torch.no_grad(), qat.frozen_base(self.accelerator.unwrap_model(model)):
            unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
            return predictions(model(**unlabelled, use_cache=False).logits, inputs["labels"])


def predictions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits (tokens, vocabulary) that predict a label, of (batch, length, vocabulary) for (batch, length)."""
    return logits[:, :-1][labels[:, 1:] != IGNORED]


def kl_divergence(teacher: torch.Tensor, student: torch.Tensor, tokens: torch.Tensor | int | None) -> torch.Tensor:
    """KL(teacher || student) of logits (tokens, vocabulary), averaged.

    As the cross-entropy it is averaged over `tokens`, the labels of all batches that make up a step, if that is given.
    """
    expected, found = (logits.float().log_softmax(-1) for logits in (teacher, student))
    divergence = torch.nn.functional.kl_div(found, expected, reduction="sum", log_target=True)
    return divergence / (len(teacher) if tokens is None else tokens)
