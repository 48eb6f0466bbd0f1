"""The values of a config as people mean them: numbers that YAML takes for texts, whole numbers, paths with a tilde.

YAML is read as version 1.1 has it: `1e-3` is a text without a point, `010` is eight, `1:30` is ninety, and of two keys
of one name the last one counts. The first can be put right afterwards; the others are gone by then, and are looked for
in the file.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

NUMBER = re.compile(r"[-+]?(?!0\d)(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[\d_]+(:[0-5]?\d)+(\.\d*)?)", re.ASCII)
MERGE_TAG = "tag:yaml.org,2002:merge"  # <<: takes the keys of another mapping
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def is_number(_, value: object) -> bool:
    """Whether JSON could hold it as a number: neither a truth value nor NaN or infinite."""
    return is_whole(_, value) or (isinstance(value, float) and math.isfinite(value))


def is_whole(_, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TYPES = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({"number": is_number, "integer": is_whole})
Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=TYPES)


def normalise(config: dict, schema: dict) -> None:
    """Put a config's values into the form that all rules see, in place; what cannot be is left for the check."""
    _normalise_plain(config)
    for error in Validator(schema).iter_errors(config):
        if error.validator == "type" and isinstance(error.instance, str):
            _set(config, list(error.absolute_path), _number(error))


def _normalise_plain(value: object) -> None:
    """Make whole numbers of 8.0 and the like, and whole paths of sources, in a mapping or a list and all below."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        if isinstance(item, float) and item.is_integer():
            value[key] = int(item)
        elif key == "source" and isinstance(item, str):
            value[key] = _expanded(item)
        else:
            _normalise_plain(item)


def _expanded(source: str) -> str:
    """A path with `~` and `$VARIABLE` filled in, unless it exists as it is written."""
    return source if os.path.exists(source) else os.path.expandvars(os.path.expanduser(source))


def _number(error: jsonschema.ValidationError) -> object:
    """The number that a text means where the schema wants one; else the text itself."""
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


def hidden_problems(path: Path | str) -> Iterator[str]:
    """What reading a YAML file hides, a line each: keys that stand twice, numbers that are not what they look like."""
    try:
        document = yaml.compose(Path(path).read_text(encoding="utf-8"), yaml.SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return  # JSON, or what Snakemake itself refuses
    yield from _hidden_below(document, path)


def _hidden_below(node: yaml.Node | None, path: Path | str) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG]
        for name in sorted({name for name in names if names.count(name) > 1}):
            line = max(key.start_mark.line for key, _ in node.value if key.value == name) + 1
            yield f"{path}, line {line}: the key '{name}' stands there twice"
    elif isinstance(node, yaml.ScalarNode) and node.tag in NUMBER_TAGS and OTHER_BASE.fullmatch(node.value):
        number = yaml.safe_load(node.value)
        yield f"{path}, line {node.start_mark.line + 1}: {node.value} is {number} in YAML; expected a plain number"
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for child in item if isinstance(item, tuple) else [item]:
                yield from _hidden_below(child, path)


def odd_keys(value: object, place: str = "") -> Iterator[str]:
    """Yield a line for each key that YAML takes for a number, a date or a truth value; the schema knows texts alone."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{place or 'config'}: expected texts as keys, found {key!r}; put it in quotes"
            yield from odd_keys(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from odd_keys(item, f"{place}[{index}]")
