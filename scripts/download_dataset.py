"""Bring an evaluation's data set to a folder: from the Hub at a pinned commit, or links to the files of a local one.

Only tables, their images inside, and the README that says which file is which split: no code.

    python scripts/download_dataset.py --source /data/ai2_arc --output resources/datasets/arc_challenge
"""

import argparse
from pathlib import Path

from int4_qat import errors, files, hub
from int4_qat.errors import InputError

TABLES = ["*.parquet", "*.json", "*.jsonl", "*.csv", "*.tsv", "*.gz", "*.zst"]
CARD = "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://datasets/<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--output", required=True, type=Path, help="folder of the data set")
    arguments = parser.parse_args()
    with files.whole(arguments.output) as folder:
        remote = hub.parse(arguments.source)
        if remote:
            hub.download(remote, folder, [*TABLES, CARD])
        else:
            link(Path(arguments.source), folder)
        tables = [table for pattern in TABLES for table in folder.rglob(pattern)]
        if not tables:
            raise InputError(f"{arguments.source}: expected a data set ({', '.join(TABLES)}), found none")
        for table in sorted(tables):
            files.refuse_lfs_pointer(table)


def link(source: Path, folder: Path) -> None:
    """A folder of links to a local data set's files."""
    if not source.is_dir():
        raise InputError(f"{source}: expected a folder with a data set, found none")
    folder.mkdir()
    for pattern in [*TABLES, CARD]:
        for file in source.rglob(pattern):
            place = folder / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file.resolve())


if __name__ == "__main__":
    errors.run(main)
