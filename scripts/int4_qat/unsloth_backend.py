"""The card's own path: unsloth's model, LoRA, fake quantization and trainer, for finetune.py.

Nothing here imports trl, transformers or peft before `import_unsloth`, which has to come first.
"""

import argparse
import os

import torch

from int4_qat import devices
from int4_qat.errors import InputError

GROUP_SIZE = 128  # of unsloth's qat_scheme "int4"


def import_unsloth() -> None:
    """Import unsloth, which patches what is imported after it; InputError without a GPU.

    Without one unsloth may go on with plain transformers, and drop the fake quantization silently.
    """
    devices.claim("cuda")
    if not torch.cuda.is_available():
        raise InputError("finetune.backend: unsloth needs a GPU, found none")
    os.environ["UNSLOTH_DISABLE_CPU_FALLBACK"] = "1"
    import unsloth  # noqa: F401


def add_adapters(folder, recipe, device: str):
    """The base model with LoRA and, for QAT, unsloth's fake quantization; InputError if that misses a layer."""
    from unsloth import FastModel

    from int4_qat import models

    if device != "cuda":
        raise InputError(f"finetune.backend: unsloth needs device cuda, not {device}")
    checkpointing = "unsloth" if recipe.gradient_checkpointing else False
    model, _ = FastModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=recipe.max_seq_length,
        dtype=models.DTYPES[recipe.dtype],
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
        qat_scheme=recipe.qat_scheme,
    )
    model.print_trainable_parameters()
    if recipe.qat_scheme is not None:
        check_fake_quantized(model, recipe.group_size)
    return model


def check_fake_quantized(model: torch.nn.Module, group_size: int) -> None:
    """InputError unless every base linear whose input features the group size divides is fake-quantized.

    unsloth fake-quantizes more than those: lora_A, lm_head, and linears that the group size does not divide, which
    would raise if they were run: in Gemma 3 they are the vision tower's.
    """
    from torchao.quantization.qat import FakeQuantizedLinear

    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    base = {name: module for name, module in linears.items() if ".lora_" not in name}
    expected = {name for name, module in base.items() if module.in_features % group_size == 0}
    found = {name for name, module in linears.items() if isinstance(module, FakeQuantizedLinear)}
    missed = sorted(expected - found)
    if missed or not expected:
        raise InputError(
            f"qat_scheme: expected unsloth to fake-quantize {len(expected)} linears, it did {len(expected & found)}"
            + (f"; not {missed[0]}" if missed else "")
        )
    others = {"lora_A": sum(".lora_A." in name for name in found), "other": len(found & base.keys() - expected)}
    print(f"fake quantization (int4, group size {group_size}) on {len(expected)} base linears; besides: {others}")


def make_trainer(model, tokenizer, data, recipe, arguments: argparse.Namespace):
    """unsloth's trainer on the texts, its labels of the responses only; InputError if a row is not that of `data`."""
    import datasets
    import pyarrow.parquet as pq
    from trl import SFTConfig, SFTTrainer  # unsloth's, by now
    from unsloth.chat_templates import train_on_responses_only

    import finetune

    texts = pq.read_table(arguments.texts, columns=["text"])["text"].to_pylist()
    config = SFTConfig(**finetune.training_settings(recipe, arguments), dataset_text_field="text")
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )
    trainer = train_on_responses_only(
        trainer, instruction_part=recipe.instruction_part, response_part=recipe.response_part
    )
    check_rows(trainer.train_dataset, data, arguments.texts)
    return finetune.watch(trainer, arguments.device == "cuda")


def check_rows(found, expected, texts) -> None:
    """InputError if unsloth's tokens or labels are not those of the other backend, which a test holds to the card's."""
    if len(found) != len(expected):
        raise InputError(f"{texts}: unsloth keeps {len(found)} of {len(expected)} rows")
    for number, (row, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        for column in ("input_ids", "labels"):
            if row[column] != wanted[column]:
                raise InputError(f"{texts}, row {number}: unsloth's {column} are not those of the transformers backend")
