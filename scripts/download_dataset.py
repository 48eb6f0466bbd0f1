"""Fetch an evaluation's data set into a folder: from the Hub at a pinned commit, or as links to a local folder's files.

Only tables, with their images inside, and the README that says which file is which split are taken; no code is.

    python scripts/download_dataset.py --source /data/ai2_arc --output resources/datasets/arc_challenge
"""

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

from int4_qat.data import hub, parquet_files, text_files
from int4_qat.system import errors, files, sources
from int4_qat.system.errors import InputError

TEXTS = ("*.json", "*.jsonl", "*.csv", "*.tsv")
TABLES = ("*.parquet", *TEXTS, "*.gz", "*.zst")
CARD = "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://datasets/<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--output", required=True, type=Path, help="folder for the data set")
    arguments = parser.parse_args()
    with files.whole(arguments.output) as folder:
        remote = hub.parse(arguments.source)
        if remote:
            hub.download(remote, folder, [*TABLES, CARD])
        else:
            link(Path(arguments.source), folder)
        tables = [path for path in map(Path, sources.local_files(folder)) if is_one_of(TABLES, path.name)]
        if not tables:
            raise InputError(f"{arguments.source}: expected a data set ({', '.join(TABLES)}), found none")
        for path in tables:
            files.refuse_lfs_pointer(path)
            check(path)


def is_one_of(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def link(source: Path, folder: Path) -> None:
    """Make a folder of links to a local data set's files; raise InputError for a suffix that is not in lower case."""
    if not source.is_dir():
        raise InputError(f"{source}: expected a folder with a data set, found none")
    listed = [Path(path) for path in sources.local_files(source)]
    taken = [file for file in listed if is_one_of((*TABLES, CARD), file.name)]
    for file in listed:
        if file not in taken and is_one_of(TABLES, file.name.lower()):
            raise InputError(
                f"{file}: expected a suffix in lower case, since `datasets` reads no other, found {file.suffix}"
            )
    files.link(source, folder, taken)


def check(path: Path) -> None:
    """Raise InputError unless a table can be read; remove a byte order mark, at which reading JSON would fail."""
    if path.suffix == ".parquet":
        parquet_files.open_file(path.resolve(), [])
    elif is_one_of(TEXTS, path.name):
        text_files.check_encoding(path.resolve())
        text_files.remove_byte_order_mark(path)


if __name__ == "__main__":
    errors.run(main)
