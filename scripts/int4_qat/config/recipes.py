"""Extract from the config what the results of one model depend on, and the settings of each of its arms."""

from int4_qat.config import calibration, named_texts, quantizations, variants

STANDIN = "standin"
NOTHING_SEEN = {"scheme": None, "ignore": None}


def recipe_of(config: dict, arm: str) -> dict:
    """Return the fine-tuning settings of one arm, with the scheme and `ignore` that its training sees, if any."""
    settings = config["finetune"] | config["finetune"]["arms"][arm]
    quantization = settings["quantization"]
    seen = quantizations.training_words(config["quantizations"][quantization]) if quantization else NOTHING_SEEN
    settings = {key: value for key, value in settings.items() if key not in ("arms", "report_to")} | seen
    # Without a quantization, a training has no grids and starts at the base itself, from which it can only move away.
    return settings if seen["scheme"] else settings | {"eval_steps": None, "grid_learning_rate": None}


def training_of(recipe: dict) -> dict:
    """Return the settings that a training depends on: what it sees of a quantization, but no name of one."""
    return {key: value for key, value in recipe.items() if key not in ("quantization", "start", "allow_worse")}


def arms_of(config: dict) -> list[str]:
    """Return the arms that some variant needs."""
    return variants.weights_of(config["variants"])[1:]


def settings_of(config: dict, model: str) -> dict:
    """Return the config of one model and of the arms in use, without what only decides on an upload."""
    source = config["models"][model]["source"]
    settings = {key: config[key] for key in ("data", "device", "variants", "evaluation")}
    settings["texts"] = named_texts.general(config)
    settings["quantizations"] = quantizations.used(
        config["quantizations"], config["variants"], config["finetune"]["arms"]
    )
    settings |= {"model": model, "source": source, "arms": {arm: recipe_of(config, arm) for arm in arms_of(config)}}
    settings["card"] = {
        "variant": config["publish"]["variant"],
        "repository": repository_of(config, model),
        "license": config["publish"]["license"],
        "license_link": config["publish"]["license_link"],
    }
    if calibration.calibrated(config):
        settings["calibration"] = config["calibration"]
    if STANDIN in (source, config["data"]["source"]):
        settings[STANDIN] = config[STANDIN]
    return settings


def repository_of(config: dict, model: str) -> str | None:
    """Return the repository to which the model is published, <owner>/<name>, or None."""
    repository = config["publish"]["repository"]
    return repository and repository.replace("{model}", model)
