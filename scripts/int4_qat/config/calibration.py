"""What a run calibrates, on which texts, and which arms begin there: `calibration`, `texts` and `start` of the config.

A method that needs texts changes the weights before they are rounded; what it leaves is a checkpoint at which a
training can begin.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from int4_qat.config import metric_names, quantizations, variants

QUESTIONS = "questions"  # the training questions in the model's chat template, among the names of texts


def calibrated(config: dict) -> list[str]:
    """Return the quantizations of a run's variants whose method needs texts."""
    used = quantizations.used(config["quantizations"], config["variants"], config["finetune"]["arms"])
    return [name for name, entry in used.items() if quantizations.is_calibrated(entry)]


def texts_of(config: dict) -> list[str]:
    """Return the names of the texts on which a run calibrates; none if it calibrates nothing."""
    return config["calibration"]["texts"] if calibrated(config) else []


def general_texts(config: dict) -> dict[str, dict]:
    """Return the entries of `texts` on which a run calibrates."""
    return {name: config["texts"][name] for name in texts_of(config) if name != QUESTIONS}


def problems(config: dict) -> Iterator[str]:
    """Yield a line for each thing that could not be calibrated, or at which no training could begin."""
    yield from _shared_names(config)
    yield from _wrong_starts(config)
    if names := calibrated(config):
        yield from _wrong_texts(config, names[0])


def _shared_names(config: dict) -> Iterator[str]:
    """Yield a line for each general text with the name of a held-out one."""
    for name in sorted(config["texts"].keys() & metric_names.texts(config["evaluation"]).keys()):
        yield f"texts.{name}: expected a name that no text in evaluation.divergence.texts has, found '{name}'"


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


def _wrong_texts(config: dict, name: str) -> Iterator[str]:
    """Yield a line for each text on which nothing can be, or may be, calibrated; `name` is a quantization that is."""
    table, section = config["texts"], config["calibration"]
    if not section or not section["texts"]:
        yield f"calibration.texts: expected some of {', '.join([QUESTIONS, *table])}, which '{name}' needs, found none"
        return
    for index, text in enumerate(section["texts"]):
        if text not in (QUESTIONS, *table):
            yield f"calibration.texts[{index}]: expected one of {', '.join([QUESTIONS, *table])}, found '{text}'"
        elif held_out := text != QUESTIONS and _held_out_twin(table[text], metric_names.texts(config["evaluation"])):
            expected = f"training text, and not the files of evaluation.divergence.texts.{held_out}"
            yield f"calibration.texts[{index}]: expected {expected}, found '{text}'"
    if section["samples"] < len(section["texts"]):
        yield f"calibration.samples: expected {len(section['texts'])} or more, one a text, found {section['samples']}"


def _held_out_twin(entry: dict, held_out: dict[str, dict]) -> str | None:
    """Return the held-out text that has files of a general text's source and pattern, if any, whatever its commit."""
    for name, other in held_out.items():
        patterns = entry["files"], other["files"]
        same_files = fnmatchcase(*patterns) or fnmatchcase(*reversed(patterns))
        if same_files and _place(entry["source"]) == _place(other["source"]):
            return name
    return None


def _place(source: str) -> str:
    """Return a source without its commit, or the folder to which a path leads."""
    return source.partition("@")[0] if source.startswith("hf://") else str(Path(source).resolve())
