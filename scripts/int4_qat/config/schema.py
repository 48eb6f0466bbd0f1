"""Make the schema of the config: rules/config.schema.yaml, completed with the training settings of the class Recipe."""

from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from int4_qat.config import recipes
from int4_qat.config.recipe import Recipe

TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object"}


def read(workflow: Path | str) -> dict:
    """Return the whole schema of the workflow in a folder."""
    schema = yaml.safe_load((Path(workflow) / "rules" / "config.schema.yaml").read_text(encoding="utf-8"))
    settings = recipe_settings()
    schema["$defs"]["recipe"] = {"properties": settings}
    schema["$defs"]["whole_recipe"] = {"$ref": "#/$defs/recipe", "required": list(settings)}
    return schema


def recipe_settings() -> dict[str, dict]:
    """Return the schema of each training setting that the config names directly, not through a quantization."""
    kinds = get_type_hints(Recipe, include_extras=True)
    return {name: _of(kind) for name, kind in kinds.items() if name not in recipes.NOTHING_SEEN}


def _of(kind: object) -> dict:
    """Return the schema of an annotation.

    It is a plain type, a TypedDict, a type with limits, a choice of values, or one of these or None.
    """
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is Annotated:
        plain, limits = get_args(kind)
        return _of(plain) | limits
    if get_origin(kind) is UnionType:
        plain, _ = get_args(kind)
        schema = _of(plain)
        return schema | {"type": [schema["type"], "null"]}
    if is_typeddict(kind):
        keys = get_type_hints(kind, include_extras=True)
        properties = {name: _of(value) for name, value in keys.items()}
        return {"type": "object", "additionalProperties": False, "required": [*keys], "properties": properties}
    return {"type": TYPES[kind]}
