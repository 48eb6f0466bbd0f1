"""Make the bf16 base from which a training learns: the student's own frozen weights, or a second copy in memory."""

from pathlib import Path

import torch
from peft import PeftModel

from int4_qat.checkpoint import architecture, loading
from int4_qat.checkpoint.heads import Head
from int4_qat.config.recipe import Recipe, compares_with_base
from int4_qat.training import sharding, start
from int4_qat.training.distillation import Reading, Teacher, last_hidden_states
from int4_qat.training.recipe import Options


def is_copy(recipe: Recipe, started: bool) -> bool:
    """Return whether the base is a second copy, because calibration or fake quantization changes the frozen weights."""
    changed = started or (recipe.scheme is not None and recipe.qat_target != "merged")
    return changed and compares_with_base(vars(recipe))


def make(model: PeftModel, recipe: Recipe, options: Options) -> Teacher:
    """Return the base from which a training's `model`, the student, learns."""
    if not is_copy(recipe, started=start.method_of(options.model) is not None):
        return of_student(model)
    return of_folder(options.base or options.model, recipe.dtype, options.device, options.spread == sharding.ALWAYS)


def of_student(model: PeftModel) -> Teacher:
    """Return the base that consists of the frozen weights below a model's adapters."""
    base = model.get_base_model()

    @torch.no_grad()
    def read(batch: dict) -> Reading:
        training = model.training
        model.eval()
        # peft's own context, model.disable_adapter, first looks up the state of every layer, for each part of a batch.
        model.base_model.disable_adapter_layers()
        try:
            return Reading(last_hidden_states(model, base, batch), Head(base))
        finally:
            model.base_model.enable_adapter_layers()
            model.train(training)

    return read


def of_folder(folder: Path, dtype: str, device: str, spread: bool = False) -> Teacher:
    """Return the base as a separate model, loaded from a folder."""
    model = loading.load(folder, architecture.DTYPES[dtype], "cpu" if spread else device)
    if spread:
        sharding.spread(model, device)

    @torch.no_grad()
    def read(batch: dict) -> Reading:
        return Reading(last_hidden_states(model, model, batch), Head(model))

    return read
