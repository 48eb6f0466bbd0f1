"""Tell which variants were calibrated on texts, from a config or from the settings of one of its models."""

from int4_qat.config import quantizations, variants
from int4_qat.config.calibration import QUESTIONS


def is_calibrated(variant: str, settings: dict) -> bool:
    """Return whether a variant's codes come from a method that needs texts."""
    return variants.is_quantized(variant) and quantizations.is_calibrated(entry_of(variant, settings))


def entry_of(variant: str, settings: dict) -> dict:
    """Return the config's entry for a variant's quantization."""
    return settings["quantizations"][variants.split(variant)[1]]


def bases(settings: dict) -> dict[str, str]:
    """Return the method of each calibrated base; the best of these bases is what training must beat."""
    of_base = [name for name in settings["variants"] if variants.split(name)[0] == variants.BASE]
    return {name: entry_of(name, settings)["method"] for name in of_base if is_calibrated(name, settings)}


def behind(variant: str, settings: dict) -> dict | None:
    """Return the calibration method and settings of a variant, or of the base from which its training started.

    Return None if neither was calibrated. `texts` maps the name of each general text to its source, and that of
    the training questions to None.
    """
    weights, precision = variants.split(variant)
    arm = settings["arms"].get(weights, {})
    name = precision if is_calibrated(variant, settings) else arm.get("start")
    if name is None:
        return None
    chosen = settings["calibration"]
    texts = {text: None if text == QUESTIONS else settings["texts"][text]["source"] for text in chosen["texts"]}
    return chosen | {"method": settings["quantizations"][name]["method"], "texts": texts}
