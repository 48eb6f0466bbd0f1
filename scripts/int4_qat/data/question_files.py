"""Read multiple-choice questions from the files that people keep them in, row by row, each with its location.

A folder has one of MMLU's two layouts: the Hub's (all/<split>-*.parquet), or the original CSV files without a header
(<split>/<subject>_<split>.csv: question, choices, letter of the answer).
"""

import csv
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from int4_qat.data import letters, mmlu, mmlu_parquet, parquet_files, text_files
from int4_qat.system import files, sources
from int4_qat.system.errors import InputError

HUB_FOLDER = "all"
CSV_FOLDERS = {"auxiliary_train": "auxiliary_train", "dev": "dev", "validation": "val", "test": "test"}
LAYOUTS = {
    ".parquet": {split: f"{HUB_FOLDER}/{split}-*.parquet" for split in mmlu.SPLITS},
    ".csv": {split: f"{folder}/*.csv" for split, folder in CSV_FOLDERS.items()},
}
NO_CHOICES = 2  # fields of a CSV row that are not choices: the question and the letter of the answer
BYTE_ORDER_MARK = "\ufeff"
Row = tuple[str, dict]  # its location, its columns


def hub_patterns(splits: Collection[str]) -> list[str]:
    """Return the patterns of the files that some splits have on the Hub."""
    return [LAYOUTS[".parquet"][split] for split in splits]


def find_files(source: Path, splits: Collection[str], optional: Collection[str] = ()) -> dict[str, list[Path]]:
    """Return the files of each split, in whichever of the two layouts a folder has; an optional split may have none.

    Raise InputError if another split has none, or if a file seems to belong to one of the splits but is misnamed. If
    all splits are asked for, that is any other file in their folders; otherwise, one that begins with a split's name.
    """
    suffix = ".parquet" if (source / HUB_FOLDER).is_dir() else ".csv"
    patterns = LAYOUTS[suffix]
    beginnings = tuple(beginning(patterns[split], whole=set(splits) == set(patterns)) for split in splits)
    found: dict[str, list[Path]] = {split: [] for split in splits}
    for path in map(Path, sources.local_files(source)):
        place = path.relative_to(source)
        of = [split for split, pattern in patterns.items() if len(place.parts) == 2 and place.match(pattern)]
        for split in found.keys() & of:
            found[split].append(path)
        if not of and suffix in place.name.lower() and in_its_folder(place, beginnings):
            expected = ", ".join(patterns[split] for split in splits)
            raise InputError(f"{source}: expected {expected}, found {place}")
    for split, paths in found.items():
        if not paths and split not in optional:
            raise InputError(f"{source / patterns[split]}: expected files of split {split}, found none")
    return {split: paths for split, paths in found.items() if paths}


def beginning(pattern: str, whole: bool) -> str:
    """Return how the paths of a pattern's files begin or, if `whole`, the paths of all files in their folder."""
    return f"{Path(pattern).parts[0]}/" if whole else pattern.partition("*")[0].removesuffix("-")


def in_its_folder(place: Path, beginnings: tuple[str, ...]) -> bool:
    """Return whether a path has one of the beginnings; its folder must be in lower case, the rest in any case."""
    return place.parts[0] == place.parts[0].lower() and place.as_posix().lower().startswith(beginnings)


def rows_of(paths: Iterable[Path], read: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    """Yield the rows of a split's files; raise InputError if a file has none."""
    for path in paths:
        files.refuse_lfs_pointer(path)
        rows = read(path)
        first = next(rows, None)
        if not first:
            raise InputError(f"{path}: expected rows, found none")
        yield first
        yield from rows


def parquet_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """Yield the given columns of each row of a parquet file."""
    batches = parquet_files.read_batches(path, columns)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def csv_rows(path: Path, choices: range) -> Iterator[Row]:
    """Yield the rows of an original CSV file except blank lines; the subject is in the file's name.

    choices is the range of the number of choices that a question may have.
    """
    text_files.check_encoding(path)
    subject = path.stem.removesuffix(f"_{path.parent.name}")
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, fields in enumerate(csv.reader(stream, strict=True), start=1):
                is_blank = len(fields) < 2 and not "".join(fields).strip()
                if not is_blank:
                    where = f"{path}, row {number}"
                    yield where, {"subject": subject, **read_fields(where, fields, choices)}
    except csv.Error as error:
        raise InputError(f"{path}, after row {number}: expected CSV ({error})") from None


def read_fields(where: str, fields: list[str], choices: range) -> dict:
    """Return the fields of a CSV row in the Hub's columns; raise InputError if the fields are not as expected."""
    if len(fields) - NO_CHOICES not in choices:
        columns = numbers(range(choices.start + NO_CHOICES, choices.stop + NO_CHOICES))
        raise InputError(f"{where}: expected {columns} columns, found {len(fields)}")
    question, *texts, letter = fields
    if question.startswith(BYTE_ORDER_MARK):
        raise InputError(f"{where}: expected no byte order mark after the start of the file, found one")
    known = letters.first(len(texts))
    if letter not in known:
        raise InputError(f"{where}: expected an answer {known[0]}-{known[-1]}, found {letter!r}")
    return {"question": question, "choices": texts, "answer": known.index(letter)}


def numbers(choices: range) -> str:
    """Return a range as text: `4`, or `2 to 26`."""
    return str(choices[0]) if len(choices) == 1 else f"{choices[0]} to {choices[-1]}"


def check_texts(where: str, row: dict, choices: range) -> None:
    """Raise InputError unless a row has a question and an allowed number of choices, all of them non-empty texts."""
    found = row["choices"]
    if not isinstance(found, list) or len(found) not in choices:
        raise InputError(f"{where}: expected {numbers(choices)} choices, found {found!r}")
    texts = {"question": row["question"]}
    texts |= {f"choice {letter}": text for letter, text in zip(letters.first(len(found)), found, strict=True)}
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise InputError(f"{where}: {name}: expected a text, found {text!r}")


def is_number_of(answer: object, choices: list) -> bool:
    """Return whether an answer is the index, from 0, of one of the choices."""
    return type(answer) is int and answer in range(len(choices))


def write_split(split: str, rows: Iterator[dict], folder: Path) -> tuple[Counter[str], dict]:
    """Write checked rows to <split>.parquet; return the number of questions by subject, and the split's counts."""
    seen, questions = set(), Counter()
    with pq.ParquetWriter(folder / f"{split}.parquet", mmlu_parquet.SCHEMA) as writer:
        shown = tqdm(rows, desc=split, unit=" rows", mininterval=1)
        while batch := list(itertools.islice(shown, parquet_files.BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, mmlu_parquet.SCHEMA))
            seen.update(hash((row["question"], *row["choices"], row["answer"])) for row in batch)
            questions.update(row["subject"] for row in batch)
    named = sum(1 for subject in questions if subject)
    total = questions.total()
    return questions, {"rows": total, "subjects": named, "duplicates": total - len(seen)}


def refuse_untested(source: str, questions: dict[str, Counter[str]]) -> None:
    """Raise InputError if a subject has examples but no test questions, as happens when a file is missing."""
    for split, counted in questions.items():
        for subject in sorted(counted.keys() - questions["test"].keys()):
            raise InputError(f"{source}: expected test questions of '{subject}', which {split} has, found none")
