"""What a run calibrates, on which texts, and which arms begin there: `calibration` and `start` of the config.

A method that needs texts changes the weights before they are rounded; what it leaves is a checkpoint at which a
training can begin.
"""

from collections.abc import Iterator

from int4_qat.config import quantizations, variants

QUESTIONS = "questions"  # the training questions in the model's chat template, among the names of texts


def calibrated(config: dict) -> list[str]:
    """Return the quantizations of a run's variants whose method needs texts."""
    used = quantizations.used(config["quantizations"], config["variants"], config["finetune"]["arms"])
    return [name for name, entry in used.items() if quantizations.is_calibrated(entry)]


def texts_of(config: dict) -> list[str]:
    """Return the names of the texts on which a run calibrates; none if it calibrates nothing."""
    return config["calibration"]["texts"] if calibrated(config) else []


def problems(config: dict) -> Iterator[str]:
    """Yield a line for each thing that could not be calibrated, or at which no training could begin."""
    yield from _wrong_starts(config)
    if names := calibrated(config):
        yield from _wrong_settings(config, names[0])


def _wrong_starts(config: dict) -> Iterator[str]:
    """Yield a line for each arm that would begin at a checkpoint that there is not, or on a grid of another scheme."""
    used = variants.weights_of(config["variants"])
    for arm, changes in config["finetune"]["arms"].items():
        start, trained = changes.get("start", config["finetune"]["start"]), changes["quantization"]
        begun = f"{variants.BASE}-{start}"
        if start is None:
            continue
        if trained is None:
            yield f"finetune.arms.{arm}.start: expected null in an arm whose quantization is null, found '{start}'"
        elif start not in (fitting := _starts(config["quantizations"], trained)):
            expected = (
                f"{' or '.join(['null', *fitting])}: calibrated, in the scheme and with the ignore of '{trained}'"
            )
            yield f"finetune.arms.{arm}.start: expected {expected}, found '{start}'"
        elif arm in used and begun not in config["variants"]:
            yield f"variants: '{begun}' is missing; the training of '{arm}' begins there"


def _starts(table: dict[str, dict], trained: str) -> list[str]:
    """Return the quantizations at whose calibrated base an arm that is trained in another can begin."""
    wanted = quantizations.training_words(table[trained])
    return [
        name
        for name, entry in table.items()
        if quantizations.is_calibrated(entry) and quantizations.training_words(entry) == wanted
    ]


def _wrong_settings(config: dict, name: str) -> Iterator[str]:
    """Yield a line for what does not make windows of some texts; `name` is a quantization that is calibrated."""
    section = config["calibration"]
    if not section or not section["texts"]:
        known = ", ".join([QUESTIONS, *config["texts"]])
        yield f"calibration.texts: expected some of {known}, which '{name}' needs, found none"
    elif section["samples"] < len(section["texts"]):
        yield f"calibration.samples: expected {len(section['texts'])} or more, one a text, found {section['samples']}"
