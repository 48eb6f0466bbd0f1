"""Adapt trl's trainer to any device, to distillation from the base in bf16, and to a separate rate for grids."""

import contextlib
import functools

import datasets
import torch
from peft import PeftModel
from trl import SFTTrainer

from int4_qat.checkpoint.heads import Head
from int4_qat.config.recipe import Distillation
from int4_qat.training import collation, distillation, learned_grid, ranks, sharding
from int4_qat.training.distillation import Reading, Teacher


class AnyDeviceSFTTrainer(SFTTrainer):
    """trl's trainer, which also runs on a CPU, distills from a teacher and trains grids.

    trl computes the loss in a Triton kernel, which does not run on a CPU; there the loss is the model's own
    cross-entropy. With a teacher, the loss is the distillation loss if the recipe has one, and the divergence on
    held-out rows can be measured.
    """

    distillation: Distillation | None = None
    tokens_at_once = collation.PART  # tokens that go through the model at once
    grid_learning_rate: float | None = None
    teacher: Teacher | None = None
    held_out: datasets.Dataset | None = None
    distilled = 0  # tokens on which the models are compared, in all batches of a step
    counts = True  # whether the part that is being computed counts

    @functools.cached_property
    def is_spread(self) -> bool:
        """Return whether the weights are sharded over several GPUs."""
        return sharding.is_spread(self.model)

    def floating_point_ops(self, inputs):
        """Return 0, since nothing reads the sum, for which transformers counts the parameters after every step."""
        return 0

    def create_optimizer(self, model=None):
        """Create the optimizer, with a rate for learned grids and no weight decay on them."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        grids = learned_grid.parameters_of(self.accelerator.unwrap_model(self.model).get_base_model())
        if grids and not exists:
            own = {id(parameter) for parameter in grids}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            optimizer.add_param_group({"params": grids, "lr": self.grid_learning_rate, "weight_decay": 0.0})
        return optimizer

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Count, besides the labels of a step, the tokens on which the models are compared."""
        batches, labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.distillation:
            self.distilled = ranks.total(sum(self.compared(batch).sum() for batch in batches), device)
        return batches, labels

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Take a batch in parts, so that the activations fit; the loss of each part is its share of the step's loss.

        All processes take the same number of parts, since the GPUs wait for each other in each part. A process that has
        fewer repeats its last part, which does not count.
        """
        if num_items_in_batch is None:  # a part's loss would then be the part's own mean
            return super().training_step(model, inputs)
        parts = collation.parts(inputs, self.tokens_at_once)
        rounds, losses = ranks.most(len(parts), self.args.device), []
        for number in range(rounds):
            self.counts, last = number < len(parts), number == rounds - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):  # gradients are averaged once
                losses.append(super().training_step(model, parts[min(number, len(parts) - 1)], num_items_in_batch))
        self.counts = True
        if self.accelerator.sync_gradients and self.is_spread:
            sharding.average_gradients(model)
        return torch.stack(losses).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.loss_of(model, inputs, return_outputs, num_items_in_batch)
        return loss if self.counts else 0 * loss

    def loss_of(self, model, inputs, return_outputs, num_items_in_batch):
        """Return the loss of a part, and the model's outputs if they are asked for."""
        if self.distillation:
            return self.distillation_loss(model, inputs, num_items_in_batch)
        inputs = inputs | {"use_cache": False}  # with a cache, transformers takes the texts of a row for a single one
        trainer_class = super() if inputs["input_ids"].is_cuda else super(SFTTrainer, self)
        return trainer_class.compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def distillation_loss(self, model: PeftModel, inputs: dict, labels_of_step: torch.Tensor) -> torch.Tensor:
        """Return what a batch adds to the loss of a step, which has `labels_of_step` labels."""
        compared, weight = self.compared(inputs), self.distillation["weight"]
        following = inputs["labels"][:, 1:][compared]
        temperature = self.distillation["temperature"]
        weights = (1 - weight) / max(1, int(labels_of_step)), weight * temperature**2 / max(1, self.distilled)
        weights = [ranks.count() * each for each in weights]  # because the processes' gradients are averaged
        readings = self.readings(model, inputs, compared)
        return distillation.loss(*readings, following, weights, temperature)

    @torch.no_grad()
    def held_out_kl(self) -> float:
        """Return the mean of KL(base || model) over all tokens of the held-out rows, in nats."""
        total, tokens = 0.0, 0
        self.model.eval()
        own = range(ranks.rank(), len(self.held_out), ranks.count())
        size, most = self.args.per_device_train_batch_size, -(-len(self.held_out) // ranks.count())
        for start in range(0, most, size):  # as many passes in each process, since the GPUs wait for each other
            rows = own[start : start + size]
            batch = self._prepare_inputs(self.data_collator([self.held_out[row] for row in rows or [0]]))
            every = distillation.compared(batch["labels"], batch["position_ids"], "all")
            with self.compute_loss_context_manager():
                found = distillation.kl(*self.readings(self.model, batch, every)).item()
            if rows:
                total += found
                tokens += int(every.sum())
        self.model.train()
        return ranks.total(total, self.args.device) / ranks.total(tokens, self.args.device)

    def compared(self, inputs: dict) -> torch.Tensor:
        """Return which states of a batch (batch, length - 1) predict a token on which the models are compared."""
        return distillation.compared(inputs["labels"], inputs["position_ids"], self.distillation["tokens"])

    def readings(self, model: PeftModel, inputs: dict, at: torch.Tensor) -> list[Reading]:
        """Return the readings of a batch by model and base at the states that `at` selects (batch, length - 1)."""
        batch = {key: value for key, value in inputs.items() if key != "labels"}
        base = self.accelerator.unwrap_model(model).get_base_model()
        found = Reading(distillation.last_hidden_states(model, base, batch), Head(base)), self.teacher(batch)
        return [reading._replace(hidden=reading.hidden[:, :-1][at]) for reading in found]
