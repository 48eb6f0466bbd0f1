"""Read and write conversation files: one list of messages with role and content per line, for any chat template."""

import json
from collections.abc import Iterator
from pathlib import Path

from int4_qat.system.errors import InputError

SUFFIX = ".jsonl"
KEYS = ("role", "content")


def line_of(where: str, value: object) -> str:
    """Return a conversation as a line of JSON; raise InputError, which says where it is, if the value is not one."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: expected a list of messages, found {value!r:.50}")
    messages = [checked(f"{where}: message {number}", message) for number, message in enumerate(value, start=1)]
    return json.dumps(messages, ensure_ascii=False) + "\n"


def checked(where: str, message: object) -> dict[str, str]:
    """Return the role and content of a message; raise InputError unless both are texts."""
    found = message if isinstance(message, dict) else {}
    if not all(isinstance(found.get(key), str) for key in KEYS):
        raise InputError(f"{where}: expected {' and '.join(KEYS)}, both texts, found {message!r:.50}")
    return {key: found[key] for key in KEYS}


def read_line(line: str) -> list[dict[str, str]]:
    """Return the messages on a line of a conversation file."""
    return json.loads(line)


def contents(path: Path) -> Iterator[str]:
    """Yield the contents of the messages of each conversation in a file, joined by newlines."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield "\n".join(message["content"] for message in read_line(line))
