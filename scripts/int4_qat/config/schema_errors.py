"""Describe where a config violates its schema, in lines that people understand."""

import datetime
import difflib
import re

import jsonschema

from int4_qat.config import config_values

TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "keys with values",
    "string": "a text",
}


def lines(config: dict, rules: dict) -> list[str]:
    """Return a line for each value of a config that the schema does not allow."""
    errors = sorted(config_values.Validator(rules).iter_errors(config), key=lambda error: error.json_path)
    return [_line(error, rules) for error in errors if not _follows_from_another(error, errors)]


def _follows_from_another(error: jsonschema.ValidationError, errors: list[jsonschema.ValidationError]) -> bool:
    """Return whether another error implies this one: a bad value makes keys `unevaluated`, a bad type is in no enum."""
    if error.validator == "unevaluatedProperties":
        return any(other.json_path.startswith(f"{error.json_path}.") for other in errors)
    return error.validator == "enum" and any(
        other.validator == "type" and other.json_path == error.json_path for other in errors
    )


def _line(error: jsonschema.ValidationError, rules: dict) -> str:
    """Return the line of an error: its key, what is wrong, and what to write instead."""
    key = error.json_path.removeprefix("$.").removeprefix("$")
    message = _expectation(error, rules) or error.message
    message = message if len(message) < 200 else f"{message[:200]} ..."
    message += _hint(error)
    return f"{key}: {message}" if key else message


def _expectation(error: jsonschema.ValidationError, rules: dict) -> str | None:
    """Return what the schema expects of a value and what was found, or None for what jsonschema says well itself."""
    if error.validator in ("pattern", "not") and "description" in error.schema:
        return f"expected {error.schema['description']}, found {error.instance!r}"
    if error.validator == "type":
        wanted = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        return f"expected {' or '.join(TYPES[kind] for kind in wanted)}, found {error.instance!r}"
    if error.validator == "enum":
        return f"expected one of {', '.join(map(repr, error.validator_value))}, found {error.instance!r}"
    if error.validator == "required":
        return f"expected the key {_named(error)[0]!r}, found none"
    if error.validator in ("additionalProperties", "unevaluatedProperties"):
        unknown = _named(error)
        return f"expected keys that exist, found {', '.join(map(repr, unknown))}" + _meant(
            unknown, _keys(error.schema, rules)
        )
    return None


def _named(error: jsonschema.ValidationError) -> list[str]:
    """Return the keys that jsonschema's message names in quotes; the error holds them nowhere else."""
    return re.findall(r"'([^']*)'", error.message)


def _meant(unknown: list[str], known: set[str]) -> str:
    """Return which of the known keys were probably meant."""
    meant = [match for key in unknown for match in difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.7)]
    return f"; did you mean {', '.join(map(repr, meant))}?" if meant else ""


def _keys(schema: dict, rules: dict) -> set[str]:
    """Return the keys that a part of the rules allows, itself or by reference."""
    keys = set(schema.get("properties", {}))
    if "$ref" in schema:
        keys |= _keys(rules["$defs"][schema["$ref"].removeprefix("#/$defs/")], rules)
    return keys


def _hint(error: jsonschema.ValidationError) -> str:
    """Return what to write instead, where YAML and people mean different things by the same words."""
    found = error.instance
    wanted = error.validator_value if error.validator in ("type", "enum") else []
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if found in ("None", "null", "") and {"null", None} & set(wanted):
        return "; nothing is written null, without quotes"
    if found is None and wanted:
        return "; there is no value"
    if "boolean" in wanted and isinstance(found, str | int):
        return "; write true or false, without quotes"
    if "string" in wanted and isinstance(found, bool | int | float | datetime.date):
        return "; put it in quotes"
    if isinstance(found, float) and not config_values.is_number(None, found):
        return "; it must be finite"
    return ""
