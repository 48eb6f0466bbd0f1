"""Check a config against the facts of a model, which download_model writes and each start of the workflow reads.

Even a mistake that only the model reveals is thus reported within a second, in one line.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from int4_qat.checkpoint import module_names
from int4_qat.config import quantizations, variants

KEYS = {
    "class",
    "sees_pictures",
    "longest_text",
    "modules",
    "inputs",
    "conversation",
    "instruction_part",
    "response_part",
    "bytes",
}
FUSED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})  # vLLM fuses each group into one layer


def misfits(facts: dict, settings: dict) -> Iterator[str]:
    """Yield a line for each key in the settings of one model that does not fit the facts of the model."""
    for name, entry in settings["quantizations"].items():
        yield from idle_exceptions(facts, name, entry.get("ignore", []))
        yield from split_layers(facts, name, entry.get("ignore", []))
    yield from wrong_marks(facts, settings["arms"])
    for arm, recipe in settings["arms"].items():
        if recipe["scheme"]:
            yield from undivided(facts, recipe, arm)
    if settings["evaluation"]["chartqa"] and not facts["sees_pictures"]:
        yield f"evaluation.chartqa: expected null for {settings['model']}, since a {facts['class']} sees no pictures"
    yield from long_windows(facts, settings)


def idle_exceptions(facts: dict, quantization: str, ignore: list[str]) -> Iterator[str]:
    """Yield a line for each entry of `ignore` that names no part of the model."""
    expected = f"parts of module names of a {facts['class']}"
    for entry in module_names.idle(ignore, facts["modules"]):
        yield f"quantizations.{quantization}.ignore: expected {expected}, found '{entry}'"


def split_layers(facts: dict, quantization: str, ignore: list[str]) -> Iterator[str]:
    """Yield a line if only some of the linears that vLLM fuses into one layer stay in bf16."""
    left_out = defaultdict(set)
    for name in facts["inputs"]:
        parent, _, leaf = name.rpartition(".")
        if module_names.named_by(ignore, name):
            left_out[parent].add(leaf)
    for parent, leaves in left_out.items():
        for layers in FUSED:
            if leaves & layers and not layers <= leaves:
                together = ", ".join(sorted(layers))
                expected = f"all of {together} of {parent} or none, since vLLM makes one layer of them"
                yield f"quantizations.{quantization}.ignore: expected {expected}, found {', '.join(sorted(leaves))}"
                return


def wrong_marks(facts: dict, arms: dict[str, dict]) -> Iterator[str]:
    """Yield a line for each turn mark that the model's chat template does not write, however many arms have it."""
    for name in ("instruction_part", "response_part"):
        by_mark = defaultdict(list)
        for arm, recipe in arms.items():
            by_mark[recipe[name]].append(arm)
        for mark, names in by_mark.items():
            if mark not in facts["conversation"]:
                key = f"finetune.{name}" if names == list(arms) else f"finetune.arms.{names[0]}.{name}"
                yield f"{key}: expected {facts[name]!r}, as the chat template writes it, found {mark!r}"


def undivided(facts: dict, recipe: dict, arm: str) -> Iterator[str]:
    """Yield a line if an arm would train in int4 a linear whose inputs the group size does not divide."""
    group_size, ignore = recipe["scheme"]["group_size"], recipe["ignore"]
    for name, inputs in facts["inputs"].items():
        if inputs % group_size and not module_names.named_by(ignore, name):
            expected = f"a divisor of the {inputs} inputs of {name}, which arm '{arm}' trains in int4"
            key = f"quantizations.{recipe['quantization']}.group_size"
            yield f"{key}: expected {expected}, found {group_size}; or name the linear in `ignore`"
            return


def long_windows(facts: dict, settings: dict) -> Iterator[str]:
    """Yield a line for each setting whose windows are longer than the longest text that the model takes."""
    longest, divergence = facts["longest_text"], settings["evaluation"]["divergence"]
    windows = {"evaluation.divergence.context": divergence["context"]} if divergence else {}
    if "calibration" in settings:
        windows["calibration.length"] = settings["calibration"]["length"]
    packed = {arm: recipe for arm, recipe in settings["arms"].items() if recipe["packing"]}
    windows |= {f"finetune.arms.{arm}.max_seq_length": recipe["max_seq_length"] for arm, recipe in packed.items()}
    for key, tokens in windows.items():
        if longest and tokens > longest:
            yield f"{key}: expected at most {longest}, the context of {settings['model']}, found {tokens}"


def full_disk(facts: dict, settings: dict, results: Path) -> Iterator[str]:
    """Yield a line if the weights of the variants that do not exist yet do not fit on the disk of the results."""
    names, sizes = settings["variants"], facts["bytes"]
    merged = [f"{weights}-{variants.BF16}" for weights in variants.weights_of(names) if weights != variants.BASE]
    needed = dict.fromkeys([*merged, *(name for name in names if name != variants.BASELINE)])
    missing = [variants.split(name)[1] for name in needed if not (results / name / "checkpoint").exists()]
    total = sum(bytes_of(precision, settings, sizes) for precision in missing)
    place = next(folder for folder in [results.absolute(), *results.absolute().parents] if folder.exists())
    free = shutil.disk_usage(place).free
    if free < total:
        yield f"{results}: expected {total / 1e9:.1f} GB free for the variants of the model, found {free / 1e9:.1f} GB"


def bytes_of(precision: str, settings: dict, sizes: dict) -> int:
    """Return the bytes of a model's weights in bf16, or in all formats of a quantization.

    A calibrated quantization also has the calibrated weights in bf16.
    """
    if precision == variants.BF16:
        return sizes["bf16"]
    entry = settings["quantizations"][precision]
    before = sizes["bf16"] if quantizations.is_calibrated(entry) else 0
    return before + len(entry["formats"]) * sizes["int4"][str(entry["group_size"])]
