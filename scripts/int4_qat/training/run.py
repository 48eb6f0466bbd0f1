"""Run a training with any backend, from its first step or its last whole checkpoint to the adapter."""

import dataclasses
import os
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

from safetensors import safe_open
from transformers import PreTrainedModel, Trainer
from transformers.integrations import get_available_reporting_integrations

from int4_qat.checkpoint import architecture, model_folder, weight_files
from int4_qat.config import limits
from int4_qat.config.recipe import compares_with_base
from int4_qat.quantization import grids, record
from int4_qat.system import devices, files, scratch, sources
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization, turns
from int4_qat.training import (
    callbacks,
    checkpoints,
    data,
    learned_grid,
    log_table,
    qat,
    ranks,
    sharding,
    start,
    teachers,
)
from int4_qat.training.recipe import Options, Recipe

PACKAGES = ("torch", "torchao", "transformers", "trl", "peft", "accelerate", "unsloth", "bitsandbytes")  # for training


def train(options: Options, recipe: Recipe, backend: ModuleType) -> None:
    """Train an arm with the add_adapters and make_trainer of a backend; write the adapter and the table of steps.

    Raise InputError if the recipe, the texts or the device do not allow the training, if SIGTERM stopped it, or if it
    ended worse than it began.
    """
    devices.claim(options.device, ranks.count())
    begun = start.method_of(options.model)
    refuse(options, recipe, begun)
    tokenizer = tokenization.load_tokenizer(options.model)
    turns.refuse_wrong_marks(tokenizer, "finetune", recipe.instruction_part, recipe.response_part)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(options.log_table.with_name("tensorboard")))
    ranks.join(options.device)
    options = options._replace(spread=spread_of(options, recipe))
    if ranks.rank() == 0:
        checkpoints.prepare(options.checkpoints, settings(options, recipe, backend))
    ranks.wait_for_all()
    model = backend.add_adapters(options.model, recipe, options.device, options.spread == sharding.ALWAYS)
    with scratch.folder() as work:
        rows = data.tokenize(options.texts, tokenizer, recipe, work)
        trainer = backend.make_trainer(model, tokenizer, rows, recipe, options)
        take_steps(trainer, recipe, checkpoints.last_whole(options.checkpoints))
    if not recipe.allow_worse:
        log_table.refuse_worse(trainer.state.log_history)
    if ranks.rank() == 0:
        write(trainer, options, qat.record(trainer.model, recipe, begun))
        files.remove(options.checkpoints)
    ranks.leave()


def refuse(options: Options, recipe: Recipe, begun: str | None) -> None:
    """Raise InputError for what shows before anything is loaded; `begun` is the method that calibrated the model."""
    files.refuse_folder(options.adapter)
    if begun and recipe.scheme is None:
        raise InputError(f"{options.model}: expected no grids, since quantization is null, found grids of {begun}")
    for problem in (*limits.unshared(vars(recipe), ranks.count()), *limits.impossible(vars(recipe))):
        raise InputError(f"finetune.{problem}")
    if begun and compares_with_base(vars(recipe)) and options.base is None:
        raise InputError(f"--base: expected a folder with the base, since {options.model} is calibrated, found none")
    if recipe.packing:
        config = architecture.read_config(options.model)
        architecture.refuse_long_text(config, recipe.max_seq_length, "finetune.max_seq_length")
    refuse_report(options.report_to)


def spread_of(options: Options, recipe: Recipe) -> str:
    """Return whether the frozen weights are spread, the same in all processes; raise InputError if they do not fit."""
    needed = least_bytes(options.model, recipe)
    if options.device == "cpu":
        return sharding.decided(options.spread, needed, None)
    free = ranks.least(devices.free_memory(), options.device)
    spread = sharding.decided(options.spread, needed, free)
    devices.refuse_too_small(needed // ranks.count() if spread == sharding.ALWAYS else needed, "training", free)
    return spread


def take_steps(trainer: Trainer, recipe: Recipe, checkpoint: Path | None) -> None:
    """Train from a checkpoint, or from the first step, to the last one.

    Raise InputError if SIGTERM stopped it, or if the texts do not fill a batch.
    """
    preemption = callbacks.PreemptionCheckpoint()
    trainer.add_callback(preemption)
    print(f"resuming from {checkpoint}" if checkpoint else "starting from the first step")
    if checkpoint and checkpoints.steps_of(checkpoint) >= recipe.max_steps:
        checkpoints.take_over(trainer, checkpoint)
        return
    if checkpoint:
        learned_grid.load(trainer.model.get_base_model(), checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    done = trainer.state.global_step
    if preemption.requested and done < recipe.max_steps:
        raise InputError(f"finetune: stopped by SIGTERM after step {done}; the next run resumes there")
    if done < recipe.max_steps:  # transformers ends a training that gets no batch with a line in its log
        expected = f"finetune.train_batch_size: expected texts for {recipe.train_batch_size} rows in each step"
        raise InputError(f"{expected}, found too few: the training ended after step {done} of {recipe.max_steps}")


def write(trainer: Trainer, options: Options, trained: dict) -> None:
    """Write the table of steps, and the adapter with its record, and with its grids if they were learned.

    Raise InputError if what was trained is not finite.
    """
    refuse_not_finite(trainer.model)
    with files.whole(options.log_table) as unfinished:
        log_table.table_of(trainer.state.log_history).to_csv(unfinished, index=False)
    with files.whole(options.adapter) as folder:
        trainer.model.save_pretrained(folder)
        check_saved(folder / "adapter_model.safetensors", trainer.model)
        if learned := qat.learned_grids(trainer.model):
            grids.write(folder, learned)
        files.write_json(folder / record.RECORD, trained)


def refuse_report(word: str) -> None:
    """Raise InputError if the package that --report-to needs is not installed."""
    available = get_available_reporting_integrations()
    if word not in ("none", *available):
        expected = f"none or an installed service ({', '.join(sorted(available)) or 'there is none'})"
        raise InputError(f"finetune.report_to: expected {expected}, found {word}")


def least_bytes(model: Path, recipe: Recipe) -> int:
    """Return the bytes of GPU memory that the frozen weights take, doubled with a second copy of the base."""
    copies = 2 if teachers.is_copy(recipe, start.method_of(model) is not None) else 1
    return copies * weight_files.loaded_bytes(model, architecture.DTYPES[recipe.dtype])


def check_saved(adapter: Path, model: PreTrainedModel) -> None:
    """Raise InputError unless the file holds all that was trained, since peft saves only the layers that it knows.

    Learned grids have a file of their own.
    """
    trained = sum(parameter.requires_grad for parameter in model.parameters()) - len(
        learned_grid.parameters_of(model.get_base_model())
    )
    with safe_open(adapter, "pt") as tensors:
        saved = len(tensors.keys())
    if saved != trained:
        raise InputError(f"finetune: expected {trained} trained tensors in the adapter, found {saved}")


def refuse_not_finite(model: PreTrainedModel) -> None:
    """Raise InputError if a trained tensor is not finite, which no loss shows if the last step made it so."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise InputError(
                f"finetune: {name}: expected finite numbers after training, found others; lower learning_rate"
            )


def weights_of(folder: Path) -> dict[str, list[int]]:
    """Return size and time of the files of a model's weights and grids, since hashing 24 GB at each start is slow.

    Raise InputError if there are none.
    """
    status = {str(file.relative_to(folder)): file.stat() for file in sorted(folder.rglob("*.safetensors"))}
    if not status:
        raise InputError(f"{folder}: expected weights, found none")
    return {name: [found.st_size, found.st_mtime_ns] for name, found in status.items()}


def settings(options: Options, recipe: Recipe, backend: ModuleType) -> dict:
    """Return what a checkpoint depends on."""
    is_copy = teachers.is_copy(recipe, start.method_of(options.model) is not None)
    teacher = (options.base or options.model) if is_copy else None
    versions = {package.metadata["Name"]: package.version for package in distributions()}
    return {
        # A training that ended worse can be accepted as it is, without retraining.
        "recipe": dataclasses.asdict(recipe) | {"allow_worse": None},
        "device": options.device,
        "texts": {name: files.digest(path) for name, path in options.texts.items()},
        "model": files.digest(*model_folder.companions_of(options.model)),
        "weights": weights_of(options.model),
        "teacher": weights_of(teacher) if teacher else None,
        "code": files.digest(*sources.local_modules(__file__, also=[backend.__file__], left_out=sources.REFUSING)),
        "versions": {name: versions.get(name) for name in PACKAGES},
    }
