"""Fetch a text into one file: from the Hub at a pinned commit, or from a local folder of .txt, parquet or JSON lines.

A column of conversations becomes JSON lines, each a list of messages with role and content; anything else becomes plain
text.

    python scripts/download_text.py --source /data/wikitext --files 'test*.parquet' --column text \\
        --output resources/texts/wikitext.txt
    python scripts/download_text.py --source /data/chats --messages conversation --output resources/texts/chats.jsonl
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from int4_qat.data import hub, texts
from int4_qat.system import errors, files, scratch
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://datasets/<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--files", nargs="+", default=texts.PATTERNS, help="patterns of files, relative to the source")
    columns = parser.add_mutually_exclusive_group()
    columns.add_argument("--column", default="text", help="column, or JSON key, that holds a text")
    columns.add_argument("--messages", metavar="COLUMN", help="column, or JSON key, that holds a conversation")
    parser.add_argument("--output", required=True, type=Path, help="text file, or JSON lines file for conversations")
    arguments = parser.parse_args()
    row = texts.conversation_row if arguments.messages else texts.text_row
    text = read(arguments.source, arguments.files, arguments.messages or arguments.column, row)
    with files.whole(arguments.output) as unfinished:
        unfinished.write_bytes(text.encode("utf-8"))
    print(f"{len(text)} characters")


def read(source: str, patterns: Sequence[str], column: str, row: texts.Row) -> str:
    """Return the text of a source; raise InputError if there is none."""
    remote = hub.parse(source)
    if remote is None:
        if not Path(source).is_dir():
            raise InputError(f"{source}: expected a folder with texts, found none")
        return texts.join(Path(source), patterns, column, row, source)
    with scratch.folder() as work:
        hub.download(remote, work / "text", [*patterns])
        return texts.join(work / "text", patterns, column, row, source)


if __name__ == "__main__":
    errors.run(main)
