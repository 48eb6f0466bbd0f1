"""The settings of a training: the one place, beside config.yaml, that names each, with the values that it may have.

config/schema.py makes the config's schema of the annotations; the training gets an object of the class.
"""

import dataclasses
from typing import Annotated, Literal

from int4_qat.system import rooms

Count = Annotated[int, {"minimum": 1}]
Target = Literal["base", "base+lora_a", "merged"]
Share = Annotated[float, {"minimum": 0, "maximum": 1}]


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """What trl's SFTConfig has under the same names."""

    per_device_train_batch_size: Count
    gradient_accumulation_steps: Count
    gradient_checkpointing: bool
    warmup_steps: Annotated[int, {"minimum": 0}]
    num_train_epochs: Count
    max_steps: Count
    learning_rate: Annotated[float, {"exclusiveMinimum": 0}]
    logging_steps: Count
    save_steps: Count
    optim: Literal["adamw_8bit", "adamw_torch"]
    weight_decay: Annotated[float, {"minimum": 0}]
    lr_scheduler_type: Literal["linear", "cosine", "constant"]
    seed: Annotated[int, {"minimum": 0, "maximum": 2**32 - 1}]  # NumPy takes no larger one


@dataclasses.dataclass(frozen=True)
class Recipe(TrainerSettings):
    """One arm of `finetune` in the config; a quantization that it names is there as scheme and ignore."""

    backend: Annotated[str, {"enum": rooms.words(rooms.BACKENDS)}]
    qat_target: Target  # what is seen in int4, where there is a scheme
    scheme: dict | None  # the words of the quantization that training sees, if it sees one
    ignore: list[str] | None  # parts of module names that are not fake-quantized, if there is a scheme
    distillation_weight: Share  # of the divergence from the base model, the cross-entropy has the rest
    r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, {"minimum": 0, "exclusiveMaximum": 1}]
    finetune_vision_layers: bool
    dtype: Literal["bfloat16", "float32"]
    max_seq_length: Count
    instruction_part: Annotated[str, {"minLength": 1}]
    response_part: Annotated[str, {"minLength": 1}]
