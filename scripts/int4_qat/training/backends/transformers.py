"""Train with peft's LoRA, our fake quantization and trl's trainer, on any device."""

import re
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from int4_qat.checkpoint import architecture, loading, text_model
from int4_qat.config.recipe import compares_with_base
from int4_qat.quantization import schemes
from int4_qat.system import attention
from int4_qat.system.errors import InputError
from int4_qat.training import callbacks, collation, compilation, qat, ranks, sharding, start, teachers
from int4_qat.training.data import Rows
from int4_qat.training.recipe import Options, Recipe, training_settings
from int4_qat.training.trainer import AnyDeviceSFTTrainer


def prepare() -> None:
    """Do nothing: this backend patches no library."""


def add_adapters(folder: Path, recipe: Recipe, device: str, spread: bool = False) -> PreTrainedModel:
    """Return the base model with LoRA on its linears and, for QAT, fake quantization of the linears below it."""
    torch.manual_seed(recipe.seed)
    model = loading.load(folder, architecture.DTYPES[recipe.dtype], "cpu" if spread else device)
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
    if recipe.scheme is not None:
        learned = recipe.grid_learning_rate is not None
        scheme, given = schemes.of_words(recipe.scheme), start.grids_for(folder, recipe.scheme, recipe.ignore)
        placed = qat.fake_quantize_linears(model, recipe.qat_target, scheme, recipe.ignore, given, learned, device)
        grids = "the grids of the checkpoint" if given else "their own grids"
        grids += ", which are trained too" if learned else ""
        print(f"fake quantization of {recipe.qat_target} ({scheme}) on {len(placed)} linears, on {grids}")
    if spread:
        print(f"sharded {sharding.spread(model, device)} layers over {ranks.count()} processes")
    return model


def unreached_pattern(folder: Path) -> str | None:
    """Return a pattern for modules that no text passes through, which texts cannot train; None if there are none."""
    roots = text_model.unreached(architecture.without_weights(folder))
    return "|".join(rf"{re.escape(root)}(\..*)?" for root in roots) or None


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to pad with, which no label counts: the pad token's, or the eos token's, or 0."""
    return next(id_ for id_ in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if id_ is not None)


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    recipe: Recipe,
    options: Options,
) -> SFTTrainer:
    """Return trl's trainer with the recipe's values, on rows that already are tokens and labels."""
    settings = training_settings(recipe, options)
    attention.fit_kernels(shapes_vary=not recipe.packing)
    side_by_side = collation.keeps_apart(model)
    if not side_by_side:
        print("each text is padded to its own row, since in this model a text affects the next one in the same row")
    tokenizer.pad_token_id = padding_token(tokenizer)  # transformers counts the tokens that are none
    collator = collation.Collator(tokenizer.pad_token_id, side_by_side)
    if options.device == "cuda":
        layers = compilation.compile_layers(model, recompute=recipe.gradient_checkpointing)
        print(f"{len(layers)} layers will be compiled")
        settings["gradient_checkpointing"] &= not layers  # compiled layers see to it themselves
    config = SFTConfig(**settings, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = AnyDeviceSFTTrainer(
        model=model, args=config, train_dataset=rows.train, processing_class=tokenizer, data_collator=collator
    )
    trainer.distillation, trainer.grid_learning_rate = recipe.distillation, recipe.grid_learning_rate
    if recipe.scheme is not None and recipe.qat_target == "merged":
        trainer.tokens_at_once = collation.PART_OF_MERGED
    if compares_with_base(vars(recipe)):
        trainer.teacher, trainer.held_out = teachers.make(model, recipe, options), rows.held_out
    if recipe.distillation:
        trainer.model_accepts_loss_kwargs = True  # the loss is already a share of the step's, whatever the model's is
    if trainer.held_out is not None:
        trainer.add_callback(callbacks.HeldOutDivergence(trainer, recipe.eval_steps))
    if ranks.count() > 1 and not trainer.model_accepts_loss_kwargs:
        found = f"found a {type(model.get_base_model()).__name__}, which returns a mean"
        raise InputError(
            f"finetune: expected a model whose loss can be summed over several GPUs, {found}; set distillation"
        )
    if options.spread == sharding.ALWAYS:
        # DistributedDataParallel takes no spread weights. For evaluation a model is wrapped in autocast alone.
        prepare = trainer.accelerator.prepare_model
        trainer.accelerator.prepare_model = lambda model, **_: prepare(model, False, evaluation_mode=True)
    return callbacks.watch(trainer, options.device == "cuda")
