"""Read a config's values as people mean them: numbers that YAML reads as strings, whole numbers, paths with a tilde.

The YAML loader follows version 1.1: `1e-3`, which has no point, is a string, `010` is eight, `1:30` is ninety, and the
last of two equal keys counts. The first can be corrected after loading. The others are lost by then, so they are looked
for in the file.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

from int4_qat.system import errors

NUMBER = re.compile(r"[-+]?(?!0\d)(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[\d_]+(:[0-5]?\d)+(\.\d*)?)", re.ASCII)
MERGE_TAG = "tag:yaml.org,2002:merge"  # of `<<`, which takes the keys of another mapping
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def is_number(_, value: object) -> bool:
    """Return whether JSON can hold a value as a number: not a boolean, NaN or infinity."""
    return is_whole(_, value) or (isinstance(value, float) and math.isfinite(value))


def is_whole(_, value: object) -> bool:
    """Return whether JSON can hold a value as a whole number: not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


TYPES = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({"number": is_number, "integer": is_whole})
Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=TYPES)


def normalise(config: dict, schema: dict) -> None:
    """Convert a config's values in place to the form that all rules see; leave what does not convert to the check."""
    _normalise_plain(config)
    for error in Validator(schema).iter_errors(config):
        if error.validator == "type" and isinstance(error.instance, str):
            _set(config, list(error.absolute_path), _number(error))


def _normalise_plain(value: object) -> None:
    """Convert 8.0 and the like to integers and expand the paths of sources, in a mapping or a list and all below it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if isinstance(item, float) and item.is_integer():
            value[key] = int(item)
        elif key == "source" and isinstance(item, str):
            value[key] = _expanded(item)
        else:
            _normalise_plain(item)


def _expanded(source: str) -> str:
    """Return a path with `~` and `$VARIABLE` expanded, unless it exists as it is written."""
    return source if os.path.exists(source) else os.path.expandvars(os.path.expanduser(source))


def _number(error: jsonschema.ValidationError) -> object:
    """Return the number that a string means if the schema wants a number there, or the string unchanged."""
    wanted, text = error.validator_value, error.instance
    if not {"number", "integer"} & set([wanted] if isinstance(wanted, str) else wanted) or not NUMBER.fullmatch(text):
        return text
    number = float(text)
    return int(number) if number.is_integer() else number


def _set(config: dict, path: list, value: object) -> None:
    *parents, last = path
    for key in parents:
        config = config[key]
    config[last] = value


def syntax_problem(path: Path | str) -> str | None:
    """Return a line that says where a file is not YAML (of which JSON is a part), or None if it is YAML."""
    try:
        yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        return f"{path}, line {error.problem_mark.line + 1}: expected YAML; {error.problem}"
    except yaml.YAMLError as error:
        return f"{path}: expected YAML; {errors.one_line(error)}"
    except UnicodeDecodeError as error:
        return f"{path}: expected UTF-8, found byte {error.object[error.start]:#04x} at position {error.start}"
    return None


def hidden_problems(path: Path | str) -> Iterator[str]:
    """Yield a line for what loading a YAML file hides: duplicate keys, and numbers that are not what they look like."""
    try:
        document = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return  # the file is JSON, or Snakemake itself refuses it
    yield from _hidden_below(document, path)


def _hidden_below(node: yaml.Node | None, path: Path | str) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG]
        for name in sorted({name for name in names if names.count(name) > 1}):
            line = max(key.start_mark.line for key, _ in node.value if key.value == name) + 1
            yield f"{path}, line {line}: expected each key once, found '{name}' twice"
    elif isinstance(node, yaml.ScalarNode) and node.tag in NUMBER_TAGS and OTHER_BASE.fullmatch(node.value):
        number = yaml.safe_load(node.value)
        yield f"{path}, line {node.start_mark.line + 1}: expected a plain number, found {node.value} ({number} in YAML)"
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for child in item if isinstance(item, tuple) else [item]:
                yield from _hidden_below(child, path)


def odd_keys(value: object, place: str = "") -> Iterator[str]:
    """Yield a line for each key that YAML reads as a number, a date or a boolean; the schema knows only strings."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{place or 'config'}: expected strings as keys, found {key!r}; put it in quotes"
            yield from odd_keys(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from odd_keys(item, f"{place}[{index}]")
