"""Check the sources of a config: local folders and files must exist and be usable, Hub sources fit their key."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from int4_qat.config import metric_names
from int4_qat.config.recipes import STANDIN
from int4_qat.data import texts
from int4_qat.system import sources

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # a repository, as the Hub shows it


def problems(config: dict) -> list[str]:
    """Return a line for each source that cannot be read, or for each text that has no files if all sources can."""
    evaluation = config["evaluation"]
    made = {f"models.{name}": model for name, model in config["models"].items()}
    made |= {"data": config["data"]} | _texts(config)
    named = made | {
        f"evaluation.{table}[{index}]": entry
        for table in ("questions", "tasks")
        for index, entry in enumerate(evaluation[table])
    }
    if evaluation["chartqa"]:
        named["evaluation.chartqa"] = evaluation["chartqa"]
    found = (_wrong(config, f"{key}.source", entry["source"], key in made) for key, entry in named.items())
    return [line for lines in found for line in lines] or list(_texts_without_files(config))


def _texts(config: dict) -> dict[str, dict]:
    """Return the entries of all texts, to measure on or to train on, by their keys in the config."""
    held_out = metric_names.texts(config["evaluation"])
    entries = {f"evaluation.divergence.texts.{name}": entry for name, entry in held_out.items()}
    return entries | {f"texts.{name}": entry for name, entry in config["texts"].items()}


def _wrong(config: dict, key: str, source: str, has_standin: bool) -> list[str]:
    if source == STANDIN and has_standin:
        return [] if STANDIN in config else [f"{key}: expected a section '{STANDIN}' in the config, found none"]
    if not source.startswith("hf://"):
        if lines := list(_written_by_the_run(key, source)):
            return lines
        is_table = key.startswith("evaluation.questions") and source.endswith(".parquet")
        if not (os.path.isfile(source) if is_table else os.path.isdir(source)):
            kind = "file" if is_table else "folder"
            on_hub = f", or {_on_hub(key)}" if HUB_NAME.fullmatch(source) else ""
            found = "something else" if os.path.exists(source) else "none"
            return [f"{key}: expected an existing {kind}{on_hub}, found {found} at {source!r}"]
        return list(_wildcards(key, [source, *sources.local_files(source)]))
    fits = source.startswith("hf://datasets/") != key.startswith("models.")
    return [] if fits else [f"{key}: expected {_on_hub(key)}, found '{source}'"]


def _on_hub(key: str) -> str:
    """Return how the source of a key is written if it is on the Hub."""
    return f"hf://{'' if key.startswith('models.') else 'datasets/'}<owner>/<name>@<commit>"


def _texts_without_files(config: dict) -> Iterator[str]:
    """Yield a line for each text in a local folder where no file matches `files`."""
    for key, entry in _texts(config).items():
        source, pattern = entry["source"], entry["files"]
        if os.path.isdir(source):
            paths = (Path(path).relative_to(source) for path in sources.local_files(source))
            if not any(texts.matches(path, [pattern]) for path in paths):
                yield f"{key}.files: expected a pattern that matches files in {source}, found {pattern!r}"


def _written_by_the_run(key: str, source: str) -> Iterator[str]:
    """Yield a line if a source is inside a folder to which the workflow writes, or contains one."""
    place, written = Path(source).resolve(), {name: Path(name).resolve() for name in sources.WRITTEN}
    inside = next((name for name, folder in written.items() if place.is_relative_to(folder)), None)
    if inside:
        yield f"{key}: expected a folder outside '{inside}', to which the workflow writes, found '{source}'"
    elif any(folder.is_relative_to(place) for folder in (Path.cwd(), *written.values())):
        yield f"{key}: expected a folder that does not hold the run or its results, found '{source}'"


def _wildcards(key: str, paths: Iterable[str]) -> Iterator[str]:
    """Yield a line for the first path that Snakemake would misread; there is no way to prevent that."""
    for path in filter(sources.has_wildcard, paths):
        yield f"{key}: expected a path without a name in braces, a wildcard to Snakemake, found {path!r}"
        return
