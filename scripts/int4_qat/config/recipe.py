"""Define the settings of a training: apart from config.yaml, the one place that names each, with its allowed values.

config/schema.py derives the config's schema from the annotations; the training gets an object of the class Recipe.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal, TypedDict

from int4_qat.system import rooms

Count = Annotated[int, {"minimum": 1}]
Target = Literal["base", "base+lora_a", "merged"]
Positive = Annotated[float, {"exclusiveMinimum": 0}]
Texts = Annotated[dict, {"minProperties": 1, "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}]


class Distillation(TypedDict):
    """Distillation from the base in bf16: `weight` of the loss is KL(base || model), the rest is the cross-entropy."""

    weight: Annotated[float, {"exclusiveMinimum": 0, "maximum": 1}]
    tokens: Literal["all", "response"]  # tokens whose predictions are compared
    temperature: Positive  # divides the logits of both (Hinton et al. 2015)


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """The settings that trl's SFTConfig has under the same names."""

    gradient_accumulation_steps: Count  # passes in which a process takes its share of a step's rows
    gradient_checkpointing: bool
    warmup_steps: Annotated[int, {"minimum": 0}]
    num_train_epochs: Count
    max_steps: Count
    learning_rate: Positive
    logging_steps: Count
    save_steps: Count
    optim: Literal["adamw_8bit", "adamw_torch"]
    weight_decay: Annotated[float, {"minimum": 0}]
    lr_scheduler_type: Literal["linear", "cosine", "constant"]
    seed: Annotated[int, {"minimum": 0, "maximum": 2**32 - 1}]  # NumPy takes no larger one


@dataclasses.dataclass(frozen=True)
class Recipe(TrainerSettings):
    """One arm of `finetune` in the config, with its quantization, if any, given as `scheme` and `ignore`."""

    backend: Annotated[str, {"enum": rooms.words(rooms.BACKENDS)}]
    train_batch_size: Count  # rows of a step, over all GPUs and passes
    qat_target: Target  # what the training sees in int4, if there is a scheme
    scheme: dict | None  # of the quantization that the training sees, if any
    ignore: list[str] | None  # parts of module names that are not fake-quantized, if there is a scheme
    # The rate of scales and zero points; without one, the grids stay as they are.
    grid_learning_rate: Annotated[float | None, {"exclusiveMinimum": 0}]
    distillation: Distillation | None
    texts: Texts  # the weight of each text, by its name
    packing: bool  # whether rows are windows of max_seq_length tokens of running text; if not, each is a question
    # The number of steps between two measurements of the divergence on held-out windows.
    eval_steps: Annotated[int | None, {"minimum": 1}]
    allow_worse: bool  # whether a training may end further from the base in bf16 than it began
    r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, {"minimum": 0, "exclusiveMaximum": 1}]
    finetune_vision_layers: bool
    dtype: Literal["bfloat16", "float32"]
    max_seq_length: Count
    instruction_part: Annotated[str, {"minLength": 1}]
    response_part: Annotated[str, {"minLength": 1}]


def compares_with_base(recipe: Mapping) -> bool:
    """Return whether a training needs the predictions of the base in bf16, by its settings."""
    return recipe["distillation"] is not None or recipe["eval_steps"] is not None
