"""Bring a text to one file: from the Hub at a pinned commit, or from a local folder of .txt, parquet or JSON lines.

    python scripts/download_text.py --source /data/wikitext --files 'test*.parquet' --column text \\
        --output resources/texts/wikitext.txt
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
    parser.add_argument("--files", nargs="+", default=texts.PATTERNS, help="patterns of paths below the source")
    parser.add_argument("--column", default="text", help="of parquet files, or key of JSON lines")
    parser.add_argument("--output", required=True, type=Path, help="text file")
    arguments = parser.parse_args()
    text = read(arguments.source, arguments.files, arguments.column)
    with files.whole(arguments.output) as unfinished:
        unfinished.write_bytes(text.encode("utf-8"))
    print(f"{len(text)} characters")


def read(source: str, patterns: Sequence[str], column: str) -> str:
    """Return the text of a source; raise InputError if there is none."""
    remote = hub.parse(source)
    if remote is None:
        if not Path(source).is_dir():
            raise InputError(f"{source}: expected a folder with texts, found none")
        return texts.join(Path(source), patterns, column, source)
    with scratch.folder() as work:
        hub.download(remote, work / "text", [*patterns])
        return texts.join(work / "text", patterns, column, source)


if __name__ == "__main__":
    errors.run(main)
