"""Read and check the table `quantizations` of the config: the scheme, method and formats of each name, and its uses."""

from collections.abc import Iterable, Iterator

from int4_qat.config import variants
from int4_qat.quantization import schemes
from int4_qat.system import rooms

ROUNDED = "rtn"  # the method against which the others are measured
LOADED = "torchao-plain"  # the format in which quality and memory are measured
VLLM = "vllm"
SERVED = {"transformers": LOADED, VLLM: "compressed-tensors"}  # the format in which each engine computes with int4
TEXTS = "texts"  # all that a method can need: texts to calibrate on


def training_words(entry: dict) -> dict:
    """Return what a training sees of a quantization: its scheme and the modules that it leaves out."""
    return {"scheme": schemes.of_words(entry).words, "ignore": sorted(entry.get("ignore", []))}


def is_calibrated(entry: dict) -> bool:
    """Return whether the method of an entry needs texts."""
    return TEXTS in _needs(entry)


def _needs(entry: dict) -> tuple[str, ...]:
    return rooms.load(rooms.METHODS, entry["method"]).NEEDS


def folders(entry: dict) -> dict[str, str]:
    """Return the formats of an entry, keyed by the folder of a variant that each fills."""
    return {rooms.load(rooms.FORMATS, word).FOLDER: word for word in entry["formats"]}


def served_folder(entry: dict, engine: str) -> str | None:
    """Return the folder of a variant that an engine serves, given the variant's entry, or None if it serves none."""
    by_format = {word: folder for folder, word in folders(entry).items()}
    return by_format.get(SERVED[engine])


def why_not_served(entry: dict, engine: str) -> str | None:
    """Return why an engine cannot serve the variants of an entry, or None if it can."""
    if served_folder(entry, engine):
        return None
    return f"{engine} computes with int4 in {SERVED[engine]}, which is not among its formats"


def repositories(entry: dict, repository: str) -> dict[str, str]:
    """Return the Hub repository of each folder of a variant: one each, since both loaders read a repository's root."""
    return {folder: f"{repository}-{rooms.load(rooms.FORMATS, word).SUFFIX}" for folder, word in folders(entry).items()}


def rounded(table: dict[str, dict], name: str, names: Iterable[str]) -> str | None:
    """Return the quantization that rounds to nearest in the scheme of `name` with the same `ignore`, or None.

    The candidates are `name` itself, then the table in order. The first whose base is among the variants is preferred.
    """
    wanted = training_words(table[name])
    twins = [twin for twin in (name, *table) if _rounds_in(table[twin], wanted)]
    measured = [twin for twin in twins if f"{variants.BASE}-{twin}" in names]
    return next(iter(measured or twins), None)


def _rounds_in(entry: dict, wanted: dict) -> bool:
    return entry["method"] == ROUNDED and training_words(entry) == wanted


def needed(names: Iterable[str], arms: dict[str, dict]) -> list[str]:
    """Return the quantizations of some variants, and those in which their arms are trained."""
    pairs = [variants.split(name) for name in names]
    trained = [arms[weights]["quantization"] for weights, _ in pairs if weights in arms]
    return [
        name for name in dict.fromkeys([*(pair[1] for pair in pairs), *trained]) if name not in (variants.BF16, None)
    ]


def used(table: dict[str, dict], names: Iterable[str], arms: dict[str, dict]) -> dict[str, dict]:
    """Return the part of the table that some variants need."""
    return {name: table[name] for name in table if name in needed(names, arms)}


def references(settings: dict) -> dict[str, str]:
    """Return the quantized base against which each variant's recovery is measured, from the settings of one model.

    A bf16 variant is measured against the quantization in which its arm is trained, or against the first one if there
    is none.
    """
    table, arms = settings["quantizations"], settings["arms"]

    def reference(name: str) -> str:
        weights, precision = variants.split(name)
        if precision == variants.BF16:
            precision = arms.get(weights, {}).get("quantization") or next(iter(table))
        return f"{variants.BASE}-{rounded(table, precision, settings['variants'])}"

    return {name: reference(name) for name in settings["variants"]}


def problems(table: dict[str, dict]) -> Iterator[str]:
    """Yield a line for each entry that contradicts itself or that no program could produce."""
    for name, entry in table.items():
        key = f"quantizations.{name}"
        if found := schemes.misfit(entry):
            yield f"{key}.{found}"
        else:
            yield from _unknown_words(key, entry)


def _unknown_words(key: str, entry: dict) -> Iterator[str]:
    """Yield a line for each method or format that has no file or does not fit the entry."""
    named = [("method", entry["method"], rooms.METHODS)]
    named += [(f"formats[{index}]", word, rooms.FORMATS) for index, word in enumerate(entry["formats"])]
    unknown = [(place, word, room) for place, word, room in named if word not in rooms.words(room)]
    for place, word, room in unknown:
        yield f"{key}.{place}: expected one of {', '.join(rooms.words(room))}, found '{word}'"
    if not unknown:
        scheme = schemes.of_words(entry)
        for index, word in enumerate(entry["formats"]):
            if needed := rooms.load(rooms.FORMATS, word).misfit(scheme):
                yield f"{key}.formats[{index}]: expected {needed}, as {word} requires, found {scheme}"
        if set(needs := _needs(entry)) - {TEXTS}:
            yield f"{key}.method: expected one that needs {TEXTS} or nothing, found one that needs {', '.join(needs)}"
        if len(folders(entry)) < len(entry["formats"]):
            yield f"{key}.formats: expected formats with different folders, found {entry['formats']}"
        if LOADED not in entry["formats"]:
            yield f"{key}.formats: expected {LOADED} in the list, since measurements load it, found {entry['formats']}"
