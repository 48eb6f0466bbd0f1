"""Watch a training by callbacks: the table of steps, whole checkpoints, preemption, gradients, the progress bar."""

import math
import resource
import signal
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer_callback import ProgressCallback

from int4_qat.system.errors import InputError
from int4_qat.training import learned_grid, log_table, ranks

WHOLE = "whole"  # a file in every checkpoint that was written to its end


class StepTable(TrainerCallback):
    """Adds tokens per second and peak memory to each logged step."""

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        self.tokens, self.time = 0, time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        self.tokens = state.num_input_tokens_seen
        self.time = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        row = state.log_history[-1]
        if "loss" not in row:
            self.time += row.get(log_table.HELD_OUT_SECONDS, 0)  # measuring is no part of a step's time
            return
        if not math.isfinite(row["loss"]):
            raise InputError(
                f"finetune: expected a finite loss at step {state.global_step}, found {row['loss']}; "
                "lower learning_rate"
            )
        now = time.perf_counter()
        row["tokens_per_second"] = round((state.num_input_tokens_seen - self.tokens) / (now - self.time), 1)
        row["peak_memory_gb"] = peak_memory_bytes(self.on_gpu) / 1e9
        self.tokens, self.time = state.num_input_tokens_seen, now


def peak_memory_bytes(on_gpu: bool) -> int:
    """Return the peak memory so far: reserved on the GPU, or resident in this process."""
    if on_gpu:
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class HeldOutDivergence(TrainerCallback):
    """Logs the divergence on held-out rows when training begins, after every `steps` steps, and at the end."""

    def __init__(self, trainer: Trainer, steps: int):
        self.trainer, self.steps = trainer, steps

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.measure(control)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or state.global_step == state.max_steps:
            self.measure(control)

    def measure(self, control: TrainerControl) -> None:
        should_log, start = control.should_log, time.perf_counter()
        divergence = self.trainer.held_out_kl()
        seconds = time.perf_counter() - start
        self.trainer.log({log_table.HELD_OUT_KL: divergence, log_table.HELD_OUT_SECONDS: seconds})
        control.should_log = should_log  # the loss of the step is still to be logged, and logging resets this


class WholeCheckpoints(TrainerCallback):
    """Completes a checkpoint and marks it once it is on the disk, since a kill can come while one is being written."""

    def on_save(self, args, state, control, model=None, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        ranks.wait_for_all()  # each has written its state of the random numbers
        if state.is_world_process_zero:
            learned_grid.save(model.get_base_model(), folder)
            (folder / WHOLE).touch()


class PreemptionCheckpoint(TrainerCallback):
    """Ends the training with a checkpoint after the current step on SIGTERM, which Slurm sends ahead of preemption.

    transformers' own enable_jit_checkpoint waits 3 seconds first, and then returns as if all steps had been done.
    """

    def __init__(self):
        self.signalled = False  # set in this process, at any moment
        self.requested = False  # set in all processes together, at the end of a step
        signal.signal(signal.SIGTERM, self.note)

    def note(self, *_) -> None:
        self.signalled = True

    def on_step_end(self, args, state, control, **kwargs):
        self.requested = ranks.any_of(self.signalled, args.device)
        if self.requested:
            control.should_save = control.should_training_stop = True


class GradientCheck(TrainerCallback):
    """Checks that every trainable parameter gets a gradient.

    The gradient of lora_A is zero until warm-up has moved B; in a training that ends before that, it is not checked.
    """

    def __init__(self):
        self.silent: set[str] | None = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.silent == set():
            return
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if self.silent is None:
            self.silent = set(trainable)
        gradients = {name: trainable[name].grad for name in self.silent}
        self.silent -= {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
        if state.global_step == min(args.warmup_steps + 2, args.max_steps - 1):
            moved = state.global_step == args.warmup_steps + 2
            silent = {name for name in self.silent if moved or "lora_A" not in name}
            if silent:
                raise InputError(f"finetune: expected a gradient for the trainable {min(silent)}, found none")


class ProgressWithLoss(ProgressCallback):
    """A bar with arm, steps, loss and time left, instead of one line per step; several arms may train at once."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(f"train {Path(args.output_dir).parent.name}")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=logs["loss"])


def watch(trainer: Trainer, on_gpu: bool) -> Trainer:
    """Add the callbacks of every backend's training: the table of steps, whole checkpoints, gradients, a bar."""
    trainer.pop_callback(ProgressCallback)
    for callback in (
        StepTable(on_gpu),
        WholeCheckpoints(),
        GradientCheck(),
        ProgressWithLoss(),
    ):
        trainer.add_callback(callback)
    return trainer
