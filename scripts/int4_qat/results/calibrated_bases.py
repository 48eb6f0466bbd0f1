"""What a method calibrated on texts, by a config or by the settings of one of its models."""

from int4_qat.config import quantizations, variants
from int4_qat.config.calibration import QUESTIONS


def is_calibrated(variant: str, settings: dict) -> bool:
    """Return whether a variant's codes come from a method that needs texts."""
    return variants.is_quantized(variant) and quantizations.is_calibrated(entry_of(variant, settings))


def entry_of(variant: str, settings: dict) -> dict:
    """Return the quantization of a variant."""
    return settings["quantizations"][variants.split(variant)[1]]


def bases(settings: dict) -> dict[str, str]:
    """Return the method of each calibrated base: the best of them is what training must beat."""
    of_base = [name for name in settings["variants"] if variants.split(name)[0] == variants.BASE]
    return {name: entry_of(name, settings)["method"] for name in of_base if is_calibrated(name, settings)}


def behind(variant: str, settings: dict) -> dict | None:
    """Return the method and the settings by which a variant, or the base that its training began at, was calibrated.

    None if neither was; `texts` are the sources of general texts by name, and None for the questions of training.
    """
    weights, precision = variants.split(variant)
    arm = settings["arms"].get(weights, {})
    name = precision if is_calibrated(variant, settings) else arm.get("start")
    if name is None:
        return None
    chosen = settings["calibration"]
    texts = {text: None if text == QUESTIONS else settings["texts"][text]["source"] for text in chosen["texts"]}
    return chosen | {"method": settings["quantizations"][name]["method"], "texts": texts}
