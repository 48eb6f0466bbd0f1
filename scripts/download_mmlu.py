"""Bring MMLU into one schema (question, subject, choices, answer), one checked parquet file a split.

The source is the Hub at a pinned commit or a local folder, in the Hub's layout (all/<split>-*.parquet) or as the
original CSV files (<split>/<subject>_<split>.csv: question, A, B, C, D, answer). A row that is not what MMLU
promises ends the program with one line that names it. Duplicates are counted in report.json, not dropped.

    python scripts/download_mmlu.py --source /data/mmlu --output resources/mmlu
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from int4_qat import errors, files, hub, mmlu, mmlu_parquet
from int4_qat.errors import InputError

CSV_FOLDER = {"auxiliary_train": "auxiliary_train", "dev": "dev", "validation": "val", "test": "test"}
CSV_FIELDS = ("question", *mmlu.LETTERS, "answer")
Row = tuple[str, dict]  # where it stands, what it says


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://datasets/<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--output", required=True, type=Path, help="folder for <split>.parquet and report.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, files.whole(arguments.output) as folder:
        folder.mkdir()
        source = fetch(arguments.source, Path(scratch))
        splits = {split: write_split(source, split, folder) for split in mmlu.SPLITS}
        files.write_json(folder / "report.json", {"source": arguments.source, "splits": splits})
    for split, report in splits.items():
        print(f"{split}: {report['rows']} rows, {report['subjects']} subjects, {report['duplicates']} duplicates")


def fetch(source: str, scratch: Path) -> Path:
    """The local folder that holds the raw files."""
    remote = hub.parse(source)
    if remote:
        hub.download(remote, scratch / "raw", ["all/*.parquet"])
        return scratch / "raw"
    if not Path(source).is_dir():
        raise InputError(f"{source}: expected a folder with MMLU, found none")
    return Path(source)


def write_split(source: Path, split: str, folder: Path) -> dict:
    """Check and write one split; returns its counts."""
    batch, rows, seen, subjects = [], 0, set(), set()
    with pq.ParquetWriter(folder / f"{split}.parquet", mmlu_parquet.SCHEMA) as writer:
        for where, row in tqdm(rows_of(source, split), desc=split, unit=" rows", mininterval=1):
            check(where, row)
            rows += 1
            seen.add(hash((row["question"], *row["choices"], row["answer"])))
            subjects.add(row["subject"])
            batch.append(row)
            if len(batch) == 8192:
                writer.write_table(pa.Table.from_pylist(batch, mmlu_parquet.SCHEMA))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, mmlu_parquet.SCHEMA))
    if not rows:
        raise InputError(f"{source}: split {split} holds no rows")
    return {"rows": rows, "subjects": len(subjects), "duplicates": rows - len(seen)}


def rows_of(source: Path, split: str) -> Iterator[Row]:
    """The rows of a split in whichever of the two layouts the folder has."""
    if (source / "all").is_dir():
        paths, read = sorted((source / "all").glob(f"{split}-*.parquet")), parquet_rows
        expected = source / "all" / f"{split}-*.parquet"
    else:
        paths, read = sorted((source / CSV_FOLDER[split]).glob("*.csv")), csv_rows
        expected = source / CSV_FOLDER[split] / "*.csv"
    if not paths:
        raise InputError(f"{expected}: expected files of split {split}, found none")
    for path in paths:
        files.refuse_lfs_pointer(path)
        yield from read(path)


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of one parquet file of the Hub."""
    number = 0
    for batch in mmlu_parquet.read_batches(path, mmlu_parquet.SCHEMA.names):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row
    if not number:
        raise InputError(f"{path}: the file holds no rows")


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of one original CSV file; its subject is in its name."""
    subject = path.stem.removesuffix(f"_{path.parent.name}")
    number = 0
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, fields in enumerate(csv.reader(stream, strict=True), start=1):
                where = f"{path}, row {number}"
                if len(fields) != len(CSV_FIELDS):
                    raise InputError(f"{where}: expected {len(CSV_FIELDS)} columns, found {len(fields)}")
                question, *choices, letter = fields
                if letter not in mmlu.LETTERS:
                    raise InputError(f"{where}: expected an answer A-D, found '{letter}'")
                yield (
                    where,
                    dict(question=question, subject=subject, choices=choices, answer=mmlu.LETTERS.index(letter)),
                )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, after row {number}: not UTF-8 ({error.reason})") from None
    except csv.Error as error:
        raise InputError(f"{path}, after row {number}: not CSV ({error})") from None
    if not number:
        raise InputError(f"{path}: the file holds no rows")


def check(where: str, row: dict) -> None:
    """A row must have a question, a subject, four choices, all of them texts and none empty, and an answer 0-3."""
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) != len(mmlu.LETTERS):
        raise InputError(f"{where}: expected 4 choices, found {choices!r}")
    texts = {"question": row["question"], "subject": row["subject"]}
    texts |= {f"choice {letter}": choice for letter, choice in zip(mmlu.LETTERS, choices, strict=True)}
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise InputError(f"{where}: {name}: expected a text, found {text!r}")
    if type(answer) is not int or answer not in range(len(mmlu.LETTERS)):
        raise InputError(f"{where}: expected an answer 0-3, found {answer!r}")


if __name__ == "__main__":
    errors.run(main)
