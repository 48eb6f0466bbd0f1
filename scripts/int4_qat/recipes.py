"""The part of the config that the results of one model come from, and the settings of each of its arms."""

from collections.abc import Iterator

from int4_qat import variants

STANDIN = "standin"
UNSLOTH_GROUP_SIZE = 128  # not an option there
PROGRAMS = {"transformers": "finetune", "unsloth": "finetune_unsloth"}  # of scripts/, by the arm's backend


def recipe_of(config: dict, arm: str) -> dict:
    """The fine-tuning settings of one arm; group size and skipped layers are among them if it sees int4."""
    settings = config["finetune"] | config["finetune"]["arms"][arm]
    settings |= {key: config["quantization"][key] if settings["qat_scheme"] else None for key in ("group_size", "skip")}
    return {key: value for key, value in settings.items() if key != "arms"}


def unsloth_misfits(recipe: dict, device: str) -> list[str]:
    """What an arm asks of unsloth 2026.10.7 that it does not do, `key: reason`; nothing for another backend."""
    if recipe["backend"] != "unsloth":
        return []
    problems = [] if device == "cuda" else [f"backend: unsloth needs device 'cuda', not '{device}'"]
    if recipe["distillation_weight"]:
        problems.append("distillation_weight: expected 0, unsloth's trainer has no distillation")
    if recipe["qat_scheme"] and recipe["qat_target"] != "base+lora_a":
        problems.append(f"qat_target: unsloth trains 'base+lora_a', not '{recipe['qat_target']}'")
    if recipe["qat_scheme"] and recipe["group_size"] != UNSLOTH_GROUP_SIZE:
        problems.append(f"group_size: unsloth's int4 has groups of {UNSLOTH_GROUP_SIZE}, not {recipe['group_size']}")
    return problems


def impossible(recipe: dict) -> Iterator[str]:
    """Yield `key: reason` for each setting of an arm that the others rule out, or that nothing could heed."""
    if recipe["qat_scheme"] and recipe["qat_target"] == "merged" and recipe["lora_dropout"]:
        yield "lora_dropout: expected 0 with qat_target merged; a merged weight has no dropout"
    if recipe["finetune_vision_layers"]:
        yield "finetune_vision_layers: expected false, since the training texts hold no pictures to learn from"
    if recipe["logging_steps"] > recipe["max_steps"]:
        yield f"logging_steps: {recipe['logging_steps']} is more than max_steps, {recipe['max_steps']}"
    if recipe["lr_scheduler_type"] == "constant" and recipe["warmup_steps"]:
        yield f"warmup_steps: expected 0 with lr_scheduler_type constant, found {recipe['warmup_steps']}"


def arms_of(config: dict) -> list[str]:
    """The arms that some variant needs."""
    return variants.weights_of(config["variants"])[1:]


def settings_of(config: dict, model: str) -> dict:
    """The config of one model and of the arms in use; what decides on an upload alone is left out."""
    source = config["models"][model]["source"]
    settings = {key: config[key] for key in ("data", "device", "quantization", "variants", "evaluation")}
    settings |= {"model": model, "source": source, "arms": {arm: recipe_of(config, arm) for arm in arms_of(config)}}
    settings["card"] = {
        "variant": config["publish"]["variant"],
        "repository": repository_of(config, model),
        "license": config["publish"]["license"],
        "license_link": config["publish"]["license_link"],
    }
    if STANDIN in (source, config["data"]["source"]):
        settings[STANDIN] = config[STANDIN]
    return settings


def metrics_of(config: dict) -> dict[str, str]:
    """The metric of each further task that stands in the summary, by task; of a config or of the settings of one."""
    return {task["task"]: task["metric"] for task in config["evaluation"]["tasks"]}


def charted(config: dict) -> list[str]:
    """The variants that are asked about charts: the model before, and all in int4."""
    names = config["variants"] if config["evaluation"]["chartqa"] else []
    return [name for name in names if name == variants.BASELINE or variants.split(name)[1] == "int4"]


def repository_of(config: dict, model: str) -> str | None:
    """Where the model is published, <owner>/<name>, or None."""
    repository = config["publish"]["repository"]
    return repository and repository.replace("{model}", model)
