"""Train with unsloth's model, LoRA, fake quantization and trainer, as the model card does.

Nothing here imports trl, transformers or peft before `prepare`, which has to be called first.
"""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from int4_qat.config import limits
from int4_qat.system import devices, scratch
from int4_qat.system.errors import InputError

FLEX, SDPA = "flex_attention", "sdpa"  # transformers' words
SCHEME = "int4"  # unsloth's word for the only scheme that config/limits.py allows


def prepare() -> None:
    """Import unsloth, which patches what is imported after it; raise InputError without a GPU.

    Without a GPU unsloth can go on with plain transformers, and drop the fake quantization silently.
    """
    # is_available would start CUDA, which would then see every GPU, whatever this process claims.
    if not torch.cuda.device_count():
        raise InputError("finetune.backend: expected a GPU for unsloth, found none")
    devices.claim("cuda")
    # Otherwise the code that unsloth generates would go into the folder of the workflow.
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(own_folder() / "compiled")
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    import unsloth  # noqa: F401


@functools.cache
def own_folder() -> Path:
    """Return a folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="unsloth-", dir=scratch.place()))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def add_adapters(folder: Path, recipe, device: str, spread: bool = False):
    """Return the base model with LoRA and, for QAT, unsloth's fake quantization.

    Raise InputError if unsloth cannot train the recipe, or if its fake quantization misses a layer.
    """
    from unsloth import FastModel

    from int4_qat.checkpoint import architecture
    from int4_qat.quantization import schemes
    from int4_qat.training import start

    for problem in limits.unsloth_misfits(vars(recipe) | {"start": start.method_of(folder)}, device):
        raise InputError(f"finetune.{problem}")
    checkpointing = "unsloth" if recipe.gradient_checkpointing else False
    model, _ = FastModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=recipe.max_seq_length,
        dtype=architecture.DTYPES[recipe.dtype],
        load_in_4bit=False,
        full_finetuning=False,
        trust_remote_code=False,
        use_exact_model_name=True,
        use_gradient_checkpointing=checkpointing,
        random_state=recipe.seed,
    )
    model = FastModel.get_peft_model(
        model,
        finetune_vision_layers=recipe.finetune_vision_layers,
        r=recipe.r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        use_gradient_checkpointing=checkpointing,
        random_state=recipe.seed,
        qat_scheme=recipe.scheme and SCHEME,
    )
    leave_flex_attention(model.get_base_model())
    model.print_trainable_parameters()
    if recipe.scheme is not None:
        check_fake_quantized(model, schemes.of_words(recipe.scheme).group_size, recipe.ignore)
    return model


def leave_flex_attention(model) -> None:
    """Use PyTorch's attention where unsloth chose FlexAttention, as for Gemma 3; raise InputError if that fails.

    FlexAttention is compiled for each length of a batch, by unsloth's own account for 4 to 12 s.
    """
    text = model.config.get_text_config()
    if text._attn_implementation == FLEX:
        model.set_attn_implementation(SDPA)
        if text._attn_implementation != SDPA:
            raise InputError(f"finetune.backend: expected attention by {SDPA}, found {text._attn_implementation}")


def check_fake_quantized(model: torch.nn.Module, group_size: int, ignore: list[str]) -> None:
    """Raise InputError unless exactly those linears below LoRA that the config quantizes are fake-quantized.

    unsloth fake-quantizes each linear with at least as many inputs as a group has, lora_A and lm_head among them.
    Linears that LoRA does not train are not in the record with which an export is compared.
    """
    from torchao.quantization.qat import FakeQuantizedLinear

    from int4_qat.quantization import linears
    from int4_qat.training import qat

    layers = qat.lora_linears(model)
    expected = {name for name in layers if not linears.ignored(name, ignore)}
    found = {name for name, layer in layers.items() if isinstance(layer.base_layer, FakeQuantizedLinear)}
    for name, layer in layers.items():
        inputs = layer.base_layer.in_features
        if name in expected and inputs % group_size:
            raise InputError(f"group_size: expected a divisor of the {inputs} inputs of {name}, found {group_size}")
    if found != expected or not expected:
        example = f"; {min(found ^ expected)} is not as configured" if found ^ expected else ""
        counts = f"expected {len(expected)} fake-quantized linears below LoRA, found {len(found)}"
        raise InputError(f"quantization: {counts}{example}")
    print(f"fake quantization (unsloth's, group size {group_size}) on {len(found)} linears")


def make_trainer(model, tokenizer, rows, recipe, options):
    """Return unsloth's trainer on the questions, with labels of the responses only.

    Raise InputError if its rows are not `rows`.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer  # unsloth's, by now
    from unsloth.chat_templates import train_on_responses_only

    from int4_qat.system import attention
    from int4_qat.training import callbacks
    from int4_qat.training.recipe import training_settings

    attention.fit_kernels(shapes_vary=True)
    (questions,) = options.texts.values()
    with scratch.plain(questions) as path:
        texts = datasets.Dataset.from_parquet(str(path), columns=["text"], cache_dir=str(own_folder()))
    # By itself unsloth puts the texts of a step into one row, with a mask over all pairs of tokens.
    config = SFTConfig(**training_settings(recipe, options), dataset_text_field="text", padding_free=False)
    trainer = SFTTrainer(model=model, args=config, train_dataset=texts, processing_class=tokenizer)
    trainer = train_on_responses_only(
        trainer, instruction_part=recipe.instruction_part, response_part=recipe.response_part
    )
    check_rows(trainer.train_dataset, rows.train, questions)
    trainer.training_step = functools.partial(step_in_parts, trainer.training_step)
    return callbacks.watch(trainer, options.device == "cuda")


def step_in_parts(step: Callable, model, batch: dict, labels_of_step: torch.Tensor | None) -> torch.Tensor:
    """Take a batch in parts, as the other backend does; return its loss, of which the loss of each part is a share.

    With more than 4,160 tokens at once, on an H200 with torch 2.11, unsloth's gradients were thousands of times too
    large for three of five shapes of batches (docs/gpu-details.md). With fewer they were right. Raise InputError if
    unsloth would return the mean of each part.
    """
    from int4_qat.training import collation

    if labels_of_step is None:
        raise InputError("finetune.backend: expected a loss that unsloth divides by the labels of a step, found a mean")
    parts = collation.parts_of_padded(batch, collation.PART)
    return torch.stack([step(model, part, labels_of_step) for part in parts]).sum()


def check_rows(found, expected, texts: Path) -> None:
    """Raise InputError if unsloth's tokens or labels differ from the other backend's.

    A test compares the other backend's with the model card's.
    """
    if len(found) != len(expected):
        raise InputError(f"{texts}: expected {len(expected)} rows, found {len(found)} in unsloth")
    for number, (row, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        for column in ("input_ids", "labels"):
            if row[column] != wanted[column]:
                raise InputError(
                    f"{texts}, row {number}: expected the {column} of backend transformers, found others in unsloth"
                )
