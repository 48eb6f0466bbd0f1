"""The check of the config, before anything runs: one line that names the key."""

import json
import os
import sys
from pathlib import Path

import jsonschema
import yaml

from int4_qat import recipes, sources, variants
from int4_qat.recipes import STANDIN

FUSED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})  # vLLM makes one layer of each group
DATA_REPORT = Path("resources/mmlu/report.json")  # of download_mmlu
MEASURED = ("mmlu", "chartqa", "memory", "latency", "answers", "parity")  # names that results of ours have


def check(config: dict, schema: str) -> None:
    """End the program with one line for each thing that is wrong."""
    found = problems(config, yaml.safe_load(Path(schema).read_text(encoding="utf-8")))
    if found:
        sys.exit("\n".join(f"config error: {line}" for line in found))


def problems(config: dict, schema: dict) -> list[str]:
    """What is wrong, a line each; the schema comes first, since the rest relies on it."""
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(config), key=lambda error: error.json_path)
    lines = [_line(error) for error in errors if not _follows_from_another(error, errors)]
    lines = lines or [
        *_missing_sources(config),
        *_repeated_tasks(config),
        *_unknown_variants(config),
        *_misfits(config),
        *_split_layers(config),
        *_too_few_examples(config),
    ]
    return lines or _unpublishable(config)


def _follows_from_another(error: jsonschema.ValidationError, errors: list[jsonschema.ValidationError]) -> bool:
    """A wrong value also makes the keys around it `unevaluated`; only the value is worth a line."""
    deeper = [other for other in errors if other.json_path.startswith(f"{error.json_path}.")]
    return error.validator == "unevaluatedProperties" and bool(deeper)


def _line(error: jsonschema.ValidationError) -> str:
    key = error.json_path.removeprefix("$.").removeprefix("$")
    message = error.message if len(error.message) < 200 else f"{error.message[:200]} ..."
    return f"{key}: {message}" if key else message


def _missing_sources(config: dict) -> list[str]:
    evaluation = config["evaluation"]
    made = {f"models.{name}.source": model["source"] for name, model in config["models"].items()}
    made["data.source"] = config["data"]["source"]
    named = made | {
        f"evaluation.tasks[{index}].source": task["source"] for index, task in enumerate(evaluation["tasks"])
    }
    if evaluation["chartqa"]:
        named["evaluation.chartqa.source"] = evaluation["chartqa"]["source"]
    return [line for key, source in named.items() for line in _wrong_source(config, key, source, key in made)]


def _wrong_source(config: dict, key: str, source: str, has_standin: bool) -> list[str]:
    if source == STANDIN and has_standin:
        return [] if STANDIN in config else [f"{key}: is '{STANDIN}', but the config has no section '{STANDIN}'"]
    if not source.startswith("hf://"):
        top = "".join(Path(source).parts[:1])
        if top in sources.WRITTEN:
            return [f"{key}: the workflow writes to '{top}'; keep '{source}' elsewhere"]
        return [] if Path(source).is_dir() else [f"{key}: expected an existing folder, found none at '{source}'"]
    kind = "" if key.startswith("models.") else "datasets/"
    expected = f"hf://{kind}<owner>/<name>@<commit>"
    is_dataset = source.startswith("hf://datasets/")
    return [] if is_dataset == bool(kind) else [f"{key}: expected {expected}, found '{source}'"]


def _repeated_tasks(config: dict) -> list[str]:
    names = [task["task"] for task in config["evaluation"]["tasks"]]
    lines = [
        f"evaluation.tasks[{index}].task: '{name}' is measured by a rule of its own"
        for index, name in enumerate(names)
        if name in MEASURED
    ]
    return lines + [
        f"evaluation.tasks[{index}].task: '{name}' is in the list already"
        for index, name in enumerate(names)
        if name in names[:index]
    ]


def _unknown_variants(config: dict) -> list[str]:
    weights = [variants.BASE, *config["finetune"]["arms"]]
    lines = []
    for index, name in enumerate(config["variants"]):
        try:
            known = variants.split(name)[0] in weights
        except ValueError:
            known = False
        if not known:
            lines.append(
                f"variants[{index}]: nothing produces '{name}'; expected "
                f"<{' or '.join(weights)}>-<{' or '.join(variants.PRECISIONS)}>"
            )
    for name in (variants.BASELINE, variants.QUANTIZED_BASELINE):
        if name not in config["variants"]:
            lines.append(f"variants: '{name}' is missing; every other one is compared with it")
    return lines


def _misfits(config: dict) -> list[str]:
    lines = []
    for arm in config["finetune"]["arms"]:
        recipe = recipes.recipe_of(config, arm)
        problems = recipes.unsloth_misfits(recipe, config["device"])
        if recipe["qat_scheme"] and recipe["qat_target"] == "merged" and recipe["lora_dropout"]:
            problems.append("lora_dropout: expected 0 with qat_target merged; a merged weight has no dropout")
        if recipe["logging_steps"] > recipe["max_steps"]:
            problems.append(f"logging_steps: {recipe['logging_steps']} is more than max_steps, {recipe['max_steps']}")
        lines += [f"finetune.arms.{arm}.{problem}" for problem in problems]
    return lines


def _split_layers(config: dict) -> list[str]:
    skip = set(config["quantization"]["skip"])
    return [
        f"quantization.skip: {', '.join(sorted(layers))} stand there all or not at all; vLLM makes one layer of them"
        for layers in FUSED
        if skip & layers and not layers <= skip
    ]


def _too_few_examples(config: dict) -> list[str]:
    """More shots than the data have examples, if those were downloaded; else download_mmlu says so."""
    source = config["data"]["source"]
    try:
        report = json.loads(DATA_REPORT.read_text(encoding="utf-8"))
        changed = max(map(os.path.getmtime, sources.local_files(source)), default=0) > DATA_REPORT.stat().st_mtime
        examples = report["fewest_examples"]
    except (OSError, ValueError, KeyError):
        return []
    shots = config["evaluation"]["mmlu"]["num_fewshot"]
    if report["source"] != source or changed or examples["count"] >= shots:
        return []
    found = f"dev of {source} has {examples['count']} of '{examples['subject']}'"
    return [f"evaluation.mmlu.num_fewshot: expected at most {examples['count']}, since {found}, found {shots}"]


def _unpublishable(config: dict) -> list[str]:
    name = config["publish"]["variant"]
    shipped = [variant for variant in config["variants"] if variants.split(variant)[1] == "int4"]
    lines = [] if name in shipped else [f"publish.variant: '{name}' is not one of the int4 variants {shipped}"]
    repositories = [recipes.repository_of(config, model) for model in config["models"]]
    if None not in repositories and len(set(repositories)) < len(repositories):
        lines.append(f"publish.repository: '{repositories[0]}' is that of several models; '{{model}}' tells them apart")
    return lines
