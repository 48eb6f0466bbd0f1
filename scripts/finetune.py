"""Fine-tune LoRA adapters on the formatted texts, with fake quantization (QAT) or without.

Only the answers count in the loss. Killed at any moment and started again, it goes on from its last whole checkpoint
in --checkpoints, if recipe, texts and model are still the same; SIGTERM makes it write one first. Writes a peft
adapter and a table of each step.

    python scripts/finetune.py --model resources/models/demo --texts results/demo/train.parquet \\
        --recipe '{"r": 8, ...}' --checkpoints /tmp/checkpoints \\
        --adapter results/demo/qat/adapter --log-table results/demo/qat/training.csv
"""

import argparse
import dataclasses
import json
import re
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import datasets
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import ProgressCallback
from trl import SFTConfig, SFTTrainer

from int4_qat import (
    checkpoints,
    devices,
    errors,
    files,
    models,
    parity,
    qat,
    recipes,
    scratch,
    sources,
    text_model,
    tokenization,
    training_callbacks,
    turns,
    weight_files,
)
from int4_qat.errors import InputError
from int4_qat.sft_trainer import AnyDeviceSFTTrainer

PACKAGES = ("torch", "torchao", "transformers", "trl", "peft", "accelerate", "unsloth", "bitsandbytes")  # that train


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One arm of `finetune` in the config, under the recipe's own names."""

    backend: str
    qat_scheme: str | None
    qat_target: str  # what is seen in int4: one of qat.TARGETS
    group_size: int | None  # of the fake quantization, if there is a scheme
    skip: list[str] | None  # parts of module names that are not fake-quantized, if there is a scheme
    distillation_weight: float  # of the divergence from the base model, the cross-entropy has the rest
    r: int
    lora_alpha: int
    lora_dropout: float
    finetune_vision_layers: bool
    dtype: str
    max_seq_length: int
    instruction_part: str
    response_part: str
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    warmup_steps: int
    num_train_epochs: int
    max_steps: int
    learning_rate: float
    logging_steps: int
    save_steps: int
    optim: str
    weight_decay: float
    lr_scheduler_type: str
    seed: int


def main(backend: ModuleType | None = None) -> None:
    """Fine-tune with the add_adapters and make_trainer of a backend: another module's, or this one's own."""
    backend = backend or sys.modules[__name__]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
    parser.add_argument("--texts", required=True, type=Path, help="parquet with the column text")
    parser.add_argument("--recipe", required=True, help="JSON: an arm of `finetune` in the config")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder to resume from")
    parser.add_argument("--adapter", required=True, type=Path, help="folder for the peft adapter")
    parser.add_argument("--log-table", required=True, type=Path, help="CSV of each logged step")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    recipe = Recipe(**json.loads(arguments.recipe))
    for problem in recipes.impossible(vars(recipe)):
        raise InputError(f"finetune.{problem}")
    if arguments.device == "cuda":
        devices.refuse_too_small(least_bytes(arguments.model, recipe), "training", devices.free_memory())
    checkpoints.prepare(arguments.checkpoints, settings(arguments, recipe, backend))
    tokenizer = tokenization.load_tokenizer(arguments.model)
    turns.refuse_wrong_marks(tokenizer, "finetune", recipe.instruction_part, recipe.response_part)
    model = backend.add_adapters(arguments.model, recipe, arguments.device)
    with scratch.folder() as work:
        data = tokenize(arguments.texts, tokenizer, recipe, work)
        trainer = backend.make_trainer(model, tokenizer, data, recipe, arguments)
        preemption = training_callbacks.PreemptionCheckpoint()
        trainer.add_callback(preemption)
        checkpoint = checkpoints.last_whole(arguments.checkpoints)
        print(f"going on from {checkpoint}" if checkpoint else "starting from the first step")
        if checkpoint and checkpoints.steps_of(checkpoint) >= recipe.max_steps:
            checkpoints.take_over(trainer, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if preemption.requested and trainer.state.global_step < recipe.max_steps:
        raise InputError(f"stopped by SIGTERM after step {trainer.state.global_step}; the next run goes on from there")
    with files.whole(arguments.log_table) as unfinished:
        rows = [row for row in trainer.state.log_history if "loss" in row]
        pd.DataFrame(rows, columns=training_callbacks.TABLE_COLUMNS).to_csv(unfinished, index=False)
    with files.whole(arguments.adapter) as folder:
        trainer.model.save_pretrained(folder)
        check_saved(folder / "adapter_model.safetensors", trainer.model)
        files.write_json(folder / parity.RECORD, qat.record(trainer.model, recipe))
    files.remove(arguments.checkpoints)


def least_bytes(model: Path, recipe: Recipe) -> int:
    """Return the bytes of GPU memory that the frozen weights take: twice theirs, if distillation keeps them too."""
    quantized = recipe.qat_scheme is not None and recipe.qat_target != "merged"
    return weight_files.file_bytes(model) * (2 if quantized and recipe.distillation_weight else 1)


def check_saved(adapter: Path, model: PreTrainedModel) -> None:
    """What was trained must be in the file: peft saves only the layers that it knows as its own."""
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    with safe_open(adapter, "pt") as tensors:
        saved = len(tensors.keys())
    if saved != trained:
        raise InputError(f"finetune: {trained} tensors were trained, the adapter holds {saved}")


def settings(arguments: argparse.Namespace, recipe: Recipe, backend: ModuleType) -> dict:
    """What a checkpoint depends on; weights by size and time, since hashing 24 GB at each start is slow."""
    status = {file.name: file.stat() for file in sorted(arguments.model.glob("*.safetensors"))}
    weights = {name: [found.st_size, found.st_mtime_ns] for name, found in status.items()}
    versions = {package.metadata["Name"]: package.version for package in distributions()}
    return {
        "recipe": dataclasses.asdict(recipe),
        "device": arguments.device,
        "texts": files.digest(arguments.texts),
        "model": files.digest(
            *sorted(arguments.model.glob("*.json")), *sorted(arguments.model.glob("tokenizer.model"))
        ),
        "weights": weights,
        "code": files.digest(*sources.local_modules(__file__), backend.__file__),
        "versions": {name: versions.get(name) for name in PACKAGES},
    }


def add_adapters(folder: Path, recipe: Recipe, device: str) -> PreTrainedModel:
    """The base model with LoRA on its linears and, for QAT, fake quant on the linears below them."""
    torch.manual_seed(recipe.seed)
    model = models.load_model(folder, models.DTYPES[recipe.dtype], device)
    lora = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        exclude_modules=unreached_pattern(folder),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    model.print_trainable_parameters()
    if recipe.qat_scheme is not None:
        keep_frozen = recipe.distillation_weight > 0
        placed = qat.fake_quantize_linears(model, recipe.qat_target, recipe.group_size, recipe.skip, keep_frozen)
        kind = f"{recipe.qat_scheme} of {recipe.qat_target}, group size {recipe.group_size}"
        print(f"fake quantization ({kind}) on {len(placed)} linears")
    return model


def unreached_pattern(folder: Path) -> str | None:
    """Return a pattern of the modules that no text passes through, which texts cannot train; None if there are none."""
    roots = text_model.unreached(models.without_weights(folder))
    return "|".join(rf"{re.escape(root)}(\..*)?" for root in roots) or None


def tokenize(texts: Path, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, work: Path) -> datasets.Dataset:
    """input_ids and labels of every text; InputError names a row in which nothing would be learned.

    The tokens are the recipe's: bos, the text as rendered, no eos. The labels leave out everything up to and
    including each response_part, and from each instruction_part on.
    """
    instruction, response = (turns.ids_of(tokenizer, mark) for mark in (recipe.instruction_part, recipe.response_part))
    cut = 0

    def encode_batch(batch: dict, rows: list[int]) -> dict:
        nonlocal cut
        tokens = tokenization.encode(tokenizer, batch["text"])
        cut += sum(len(row) > recipe.max_seq_length for row in tokens)
        tokens = [row[: recipe.max_seq_length] for row in tokens]
        labels = [turns.response_labels(row, instruction, response) for row in tokens]
        for row, row_labels in zip(rows, labels, strict=True):
            if all(label == turns.IGNORED for label in row_labels):
                raise InputError(
                    f"{texts}, row {row + 1}: no token counts in the loss; expected '{recipe.response_part.strip()}' "
                    f"and an answer within max_seq_length {recipe.max_seq_length}"
                )
        return {"input_ids": tokens, "labels": labels}

    with scratch.plain(texts) as path:
        rows = datasets.Dataset.from_parquet(str(path), columns=["text"], cache_dir=str(work))
    tokenized = rows.map(encode_batch, batched=True, with_indices=True, remove_columns=["text"], desc="tokenize")
    if cut:
        print(f"{cut} of {len(tokenized)} texts are cut at max_seq_length {recipe.max_seq_length}")
    return tokenized


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: datasets.Dataset,
    recipe: Recipe,
    arguments: argparse.Namespace,
) -> SFTTrainer:
    """trl's trainer with the recipe's values, on rows that are tokens and labels already."""
    config = SFTConfig(**training_settings(recipe, arguments), dataset_kwargs={"skip_prepare_dataset": True})
    trainer = AnyDeviceSFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.distillation_weight = recipe.distillation_weight
    return watch(trainer, arguments.device == "cuda")


def training_settings(recipe: Recipe, arguments: argparse.Namespace) -> dict:
    """The recipe in the names of trl's SFTConfig."""
    on_gpu = arguments.device == "cuda"
    return dict(
        output_dir=str(arguments.checkpoints),
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        gradient_checkpointing=recipe.gradient_checkpointing,
        warmup_steps=recipe.warmup_steps,
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        learning_rate=recipe.learning_rate,
        logging_steps=recipe.logging_steps,
        save_strategy="steps",
        save_steps=recipe.save_steps,
        save_total_limit=2,
        optim=recipe.optim,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.lr_scheduler_type,
        seed=recipe.seed,
        max_length=recipe.max_seq_length,
        packing=False,
        dataloader_pin_memory=on_gpu,
        bf16=on_gpu and recipe.dtype == "bfloat16",
        use_cpu=not on_gpu,
        include_num_input_tokens_seen="non_padding",
        logging_nan_inf_filter=False,
        report_to="none",
    )


def watch(trainer: SFTTrainer, on_gpu: bool) -> SFTTrainer:
    """Add what every backend's training is watched by: the table of steps, whole checkpoints, gradients, a bar."""
    trainer.pop_callback(ProgressCallback)
    for callback in (
        training_callbacks.StepTable(on_gpu),
        training_callbacks.WholeCheckpoints(),
        training_callbacks.GradientCheck(),
        training_callbacks.ProgressWithLoss(),
    ):
        trainer.add_callback(callback)
    return trainer


if __name__ == "__main__":
    errors.run(main)
