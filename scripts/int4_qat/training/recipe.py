"""Define what a training gets besides its recipe: its inputs and outputs, and trl's names for the settings."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from int4_qat.config.recipe import Recipe, TrainerSettings
from int4_qat.training import ranks


class Options(NamedTuple):
    """The inputs and outputs of a training, and the device on which it runs."""

    model: Path  # folder of the base model, or of a calibrated one
    texts: dict[str, Path]  # files of the recipe's texts, by name
    device: str  # cpu or cuda
    checkpoints: Path  # folder to resume from
    adapter: Path  # folder for the peft adapter
    log_table: Path  # CSV of each logged step
    base: Path | None = None  # folder of the base model, if training starts from a calibrated one
    report_to: str = "none"  # where metrics are also reported: a value that transformers takes
    spread: str = "auto"  # whether each process holds a shard of the frozen weights: a word of sharding.WORDS


def training_settings(recipe: Recipe, options: Options) -> dict:
    """Return the recipe under the names of trl's SFTConfig."""
    on_gpu = options.device == "cuda"
    shares = ranks.count() * recipe.gradient_accumulation_steps
    same = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(TrainerSettings)}
    return same | dict(
        output_dir=str(options.checkpoints),
        per_device_train_batch_size=recipe.train_batch_size // shares,
        save_strategy="steps",
        save_total_limit=2,
        max_length=recipe.max_seq_length,
        packing=False,  # data.tokenize has packed the rows, in an order that gives each batch its share of each text
        train_sampling_strategy="sequential" if recipe.packing else "random",
        dataloader_pin_memory=on_gpu,
        bf16=on_gpu and recipe.dtype == "bfloat16",
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,
        # With several processes accelerate would fill an epoch's last batch with rows that were already used.
        dataloader_drop_last=ranks.count() > 1,
        ddp_backend=None if ranks.count() == 1 else "nccl" if on_gpu else "gloo",
        include_num_input_tokens_seen="non_padding",
        logging_nan_inf_filter=False,
        report_to=options.report_to,
    )
