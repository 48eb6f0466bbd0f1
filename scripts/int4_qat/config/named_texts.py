"""Find and check the texts that a run trains and calibrates on (`texts`, `finetune.texts`, `calibration.texts`)."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from int4_qat.config import calibration, metric_names, variants
from int4_qat.config.calibration import QUESTIONS
from int4_qat.data import conversations

TRAINING, CALIBRATION = "finetune.texts", "calibration.texts"


def of_arm(config: dict, arm: str) -> list[str]:
    """Return the names of the texts that an arm is trained on."""
    return sorted(config["finetune"]["arms"][arm].get("texts", config["finetune"]["texts"]))


def used(config: dict) -> dict[str, list[str]]:
    """Return, by the config's key, the names of the texts on which a run trains its arms and on which it calibrates."""
    arms = variants.weights_of(config["variants"])[1:]
    trained = {name for arm in arms for name in of_arm(config, arm)}
    return {TRAINING: sorted(trained), CALIBRATION: sorted(calibration.texts_of(config))}


def general(config: dict) -> dict[str, dict]:
    """Return the entries of `texts` on which a run trains or calibrates."""
    names = set().union(*used(config).values()) - {QUESTIONS}
    return {name: config["texts"][name] for name in sorted(names)}


def file_name(name: str, entry: dict) -> str:
    """Return the name of the file that download_text writes for a text."""
    return f"{name}{conversations.SUFFIX if 'messages' in entry else '.txt'}"


def problems(config: dict) -> Iterator[str]:
    """Yield a line for each text that cannot or must not be used for training or calibration."""
    table, held_out = config["texts"], metric_names.texts(config["evaluation"])
    for name in sorted(table.keys() & held_out.keys()):
        yield f"texts.{name}: expected a name that no text in evaluation.divergence.texts has, found '{name}'"
    for key, name in _places(config):
        if name not in (QUESTIONS, *table):
            yield f"{key}: expected one of {', '.join([QUESTIONS, *table])}, found '{name}'"
        elif twin := name != QUESTIONS and _held_out_twin(table[name], held_out):
            expected = f"a text with other files than evaluation.divergence.texts.{twin}"
            yield f"{key}: expected {expected}, found '{name}'"


def _places(config: dict) -> Iterator[tuple[str, str]]:
    """Yield each key of the config that names a text to train or calibrate on, with that name."""
    for name in config["finetune"]["texts"]:
        yield f"{TRAINING}.{name}", name
    for arm, changes in config["finetune"]["arms"].items():
        for name in changes.get("texts", {}):
            yield f"finetune.arms.{arm}.texts.{name}", name
    for index, name in enumerate(calibration.texts_of(config)):
        yield f"{CALIBRATION}[{index}]", name


def _held_out_twin(entry: dict, held_out: dict[str, dict]) -> str | None:
    """Return the held-out text whose source, at any commit, and pattern match those of a general text, or None."""
    for name, other in held_out.items():
        patterns = entry["files"], other["files"]
        same_files = fnmatchcase(*patterns) or fnmatchcase(*reversed(patterns))
        if same_files and _place(entry["source"]) == _place(other["source"]):
            return name
    return None


def _place(source: str) -> str:
    """Return a Hub source without its commit, or the resolved path of a local one."""
    return source.partition("@")[0] if source.startswith("hf://") else str(Path(source).resolve())
