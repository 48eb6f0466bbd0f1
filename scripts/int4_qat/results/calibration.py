"""Which variants a method calibrated on texts, by a config or by the settings of one of its models."""

from int4_qat.config import quantizations, variants


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
