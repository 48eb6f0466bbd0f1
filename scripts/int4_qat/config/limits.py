"""Find an arm's settings that rule each other out, for the check of the config and for the training itself."""

from collections.abc import Iterator

from int4_qat.config import shares
from int4_qat.config.calibration import QUESTIONS
from int4_qat.quantization import schemes

OURS = ("distillation", "eval_steps", "grid_learning_rate")
UNSLOTH_SCHEME = schemes.int4(128)  # unsloth has no setting that changes it
ONE_GPU = ("calibrate", "evaluate_chartqa", "measure_memory")  # rules that use only one GPU


def unsloth_misfits(recipe: dict, device: str) -> list[str]:
    """Return `key: reason` for each setting that unsloth 2026.10.7 does not support; nothing for another backend."""
    if recipe["backend"] != "unsloth":
        return []
    problems = [] if device == "cuda" else [f"backend: expected device 'cuda' for unsloth, found '{device}'"]
    if recipe.get("start"):
        problems.append(f"start: expected null, since unsloth cannot train on given grids, found '{recipe['start']}'")
    for key in (key for key in OURS if recipe[key]):
        problems.append(f"{key}: expected null with backend unsloth, found {recipe[key]}")
    if recipe["packing"]:
        problems.append("packing: expected false, since unsloth trains on questions row by row, found true")
    if recipe["scheme"] and recipe["qat_target"] != "base+lora_a":
        problems.append(f"qat_target: expected 'base+lora_a' with backend unsloth, found '{recipe['qat_target']}'")
    if recipe["scheme"] and schemes.of_words(recipe["scheme"]) != UNSLOTH_SCHEME:
        found = schemes.of_words(recipe["scheme"])
        problems.append(f"quantization: expected {UNSLOTH_SCHEME}, with backend unsloth, found {found}")
    return problems


def impossible(recipe: dict) -> Iterator[str]:
    """Yield `key: reason` for each setting of an arm that the others rule out or leave without effect."""
    if recipe["scheme"] and recipe["qat_target"] == "merged" and recipe["lora_dropout"]:
        yield f"lora_dropout: expected 0 with qat_target merged, found {recipe['lora_dropout']}"
    if recipe["scheme"] and recipe["qat_target"] != "merged" and recipe["grid_learning_rate"]:
        yield f"grid_learning_rate: expected null unless qat_target is merged, found {recipe['grid_learning_rate']}"
    if recipe["eval_steps"] and not recipe["scheme"]:
        yield f"eval_steps: expected null in an arm without a quantization, found {recipe['eval_steps']}"
    yield from _idle_texts(recipe)
    if recipe["finetune_vision_layers"]:
        yield "finetune_vision_layers: expected false, since the training texts hold no pictures, found true"
    if recipe["logging_steps"] > recipe["max_steps"]:
        yield f"logging_steps: expected at most max_steps, {recipe['max_steps']}, found {recipe['logging_steps']}"
    if recipe["lr_scheduler_type"] == "constant" and recipe["warmup_steps"]:
        yield f"warmup_steps: expected 0 with lr_scheduler_type constant, found {recipe['warmup_steps']}"


def unshared(recipe: dict, processes: int) -> Iterator[str]:
    """Yield `key: reason` for each setting that rules out training by the given number of processes, one per GPU."""
    if processes > 1 and recipe["backend"] == "unsloth":
        yield f"backend: expected transformers on {processes} GPUs, since unsloth trains on one, found unsloth"
    if recipe["train_batch_size"] % (processes * recipe["gradient_accumulation_steps"]):
        expected = f"a multiple of {processes} GPUs x {recipe['gradient_accumulation_steps']} passes"
        yield f"train_batch_size: expected {expected}, found {recipe['train_batch_size']}"


def _idle_texts(recipe: dict) -> Iterator[str]:
    """Yield `key: reason` for each setting with which nothing could be learned from a text."""
    general = [name for name in recipe["texts"] if name != QUESTIONS]
    if recipe["packing"] and recipe["max_seq_length"] < 2:
        yield f"max_seq_length: expected 2 or more with packing, found {recipe['max_seq_length']}"
    if recipe["packing"] and not recipe["distillation"]:
        yield "packing: expected false without distillation, since only the answers count in the loss, found true"
    elif general and not recipe["packing"]:
        yield f"texts.{general[0]}: expected only questions without packing, found '{general[0]}'"
    elif general and recipe["distillation"]["tokens"] != "all":
        yield f"distillation.tokens: expected all, since '{general[0]}' has no responses, found response"
    if recipe["distillation"] and recipe["distillation"]["weight"] < 1 and QUESTIONS not in recipe["texts"]:
        expected = f"1 without {QUESTIONS}, since no other text has responses"
        yield f"distillation.weight: expected {expected}, found {recipe['distillation']['weight']}"
    if recipe["packing"]:
        total = shares.rows_of(recipe)
        for name in (name for name, rows in shares.of_texts(recipe["texts"], total).items() if not rows):
            expected = f"a weight that gives it at least one of {total} rows"
            yield f"texts.{name}: expected {expected}, found {recipe['texts'][name]}"
