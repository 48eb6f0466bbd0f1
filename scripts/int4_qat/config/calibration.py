"""Find and check what a run calibrates, on which texts, and which arms start there (`calibration` and `start`).

A method that needs texts changes the weights before they are rounded. The result is a checkpoint at which a training
can start.
"""

from collections.abc import Iterator

from int4_qat.config import quantizations, variants

QUESTIONS = "questions"  # names, among the texts, the training questions in the model's chat template


def calibrated(config: dict) -> list[str]:
    """Return the quantizations of a run's variants whose method needs texts."""
    used = quantizations.used(config["quantizations"], config["variants"], config["finetune"]["arms"])
    return [name for name, entry in used.items() if quantizations.is_calibrated(entry)]


def texts_of(config: dict) -> list[str]:
    """Return the names of the texts on which a run calibrates, or an empty list if it calibrates nothing."""
    return config["calibration"]["texts"] if calibrated(config) else []


def problems(config: dict) -> Iterator[str]:
    """Yield a line for each setting with which a calibration could not run or a training could not start."""
    yield from _wrong_starts(config)
    if names := calibrated(config):
        yield from _wrong_settings(config, names[0])


def _wrong_starts(config: dict) -> Iterator[str]:
    """Yield a line for each arm whose start does not fit its quantization or is not among the variants."""
    used = variants.weights_of(config["variants"])
    for arm, changes in config["finetune"]["arms"].items():
        start, trained = changes.get("start", config["finetune"]["start"]), changes["quantization"]
        begun = f"{variants.BASE}-{start}"
        if start is None:
            continue
        if trained is None:
            yield f"finetune.arms.{arm}.start: expected null in an arm whose quantization is null, found '{start}'"
        elif start not in (fitting := _starts(config["quantizations"], trained)):
            expected = f"{' or '.join(['null', *fitting])} (calibrated, with the scheme and `ignore` of '{trained}')"
            yield f"finetune.arms.{arm}.start: expected {expected}, found '{start}'"
        elif arm in used and begun not in config["variants"]:
            yield f"variants: expected '{begun}', from which the training of '{arm}' starts, found none"


def _starts(table: dict[str, dict], trained: str) -> list[str]:
    """Return the quantizations whose calibrated base can be the start of an arm that is trained in `trained`."""
    wanted = quantizations.training_words(table[trained])
    return [
        name
        for name, entry in table.items()
        if quantizations.is_calibrated(entry) and quantizations.training_words(entry) == wanted
    ]


def _wrong_settings(config: dict, name: str) -> Iterator[str]:
    """Yield a line if there are no texts, or fewer samples than texts; `name` is a calibrated quantization."""
    section = config["calibration"]
    if not section or not section["texts"]:
        known = ", ".join([QUESTIONS, *config["texts"]])
        yield f"calibration.texts: expected one or more of {known}, since '{name}' needs texts, found none"
    elif section["samples"] < len(section["texts"]):
        yield f"calibration.samples: expected {len(section['texts'])} or more, one per text, found {section['samples']}"
