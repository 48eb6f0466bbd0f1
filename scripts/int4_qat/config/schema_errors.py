"""Describe where a config violates its schema, in lines that people understand."""

import datetime

import jsonschema

from int4_qat.config import config_values


def lines(config: dict, rules: dict) -> list[str]:
    """Return a line for each value of a config that the schema does not allow."""
    errors = sorted(config_values.Validator(rules).iter_errors(config), key=lambda error: error.json_path)
    return [_line(error) for error in errors if not _follows_from_another(error, errors)]


def _follows_from_another(error: jsonschema.ValidationError, errors: list[jsonschema.ValidationError]) -> bool:
    """Return whether another error implies this one: a bad value makes keys `unevaluated`, a bad type is in no enum."""
    if error.validator == "unevaluatedProperties":
        return any(other.json_path.startswith(f"{error.json_path}.") for other in errors)
    return error.validator == "enum" and any(
        other.validator == "type" and other.json_path == error.json_path for other in errors
    )


def _line(error: jsonschema.ValidationError) -> str:
    """Return the line of an error: its key, what is wrong, and what to write instead."""
    key = error.json_path.removeprefix("$.").removeprefix("$")
    message = _expectation(error) or error.message
    message = message if len(message) < 200 else f"{message[:200]} ..."
    message += _hint(error)
    return f"{key}: {message}" if key else message


def _expectation(error: jsonschema.ValidationError) -> str | None:
    """Return what the schema's description says of a value that it checks by `pattern` or `not`, or None."""
    if error.validator in ("pattern", "not") and "description" in error.schema:
        return f"expected {error.schema['description']}, found {error.instance!r}"
    return None


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
        return "; expected a finite number"
    return ""
