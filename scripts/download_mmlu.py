"""Bring MMLU into one schema (question, subject, choices, answer), one checked parquet file a split.

The source is the Hub at a pinned commit or a local folder, in the Hub's layout (all/<split>-*.parquet) or as the
original CSV files (<split>/<subject>_<split>.csv: question, A, B, C, D, answer). A file or row that is not what MMLU
promises ends the program with one line that names it. Duplicates are counted in report.json, not dropped.

    python scripts/download_mmlu.py --source /data/mmlu --num-fewshot 0 --output resources/mmlu
"""

import argparse
import csv
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from int4_qat.data import hub, mmlu, mmlu_parquet, text_files
from int4_qat.system import errors, files, sources
from int4_qat.system.errors import InputError

HUB_FOLDER = "all"
CSV_FOLDER = {"auxiliary_train": "auxiliary_train", "dev": "dev", "validation": "val", "test": "test"}
LAYOUTS = {
    ".parquet": {split: f"{HUB_FOLDER}/{split}-*.parquet" for split in mmlu.SPLITS},
    ".csv": {split: f"{folder}/*.csv" for split, folder in CSV_FOLDER.items()},
}
CSV_FIELDS = ("question", *mmlu.LETTERS, "answer")
BYTE_ORDER_MARK = "\ufeff"
BATCH_ROWS = 8192
Row = tuple[str, dict]  # where it stands, what it says


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://datasets/<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--num-fewshot", type=int, help="refuse what lm-eval cannot score with so many examples")
    parser.add_argument("--output", required=True, type=Path, help="folder for <split>.parquet and report.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, files.whole(arguments.output) as folder:
        folder.mkdir()
        found = find_files(fetch(arguments.source, Path(scratch)))
        questions, reports = {}, {}
        for split, paths in found.items():
            questions[split], reports[split] = write_split(split, paths, folder)
        check_subjects(arguments.source, questions)
        if arguments.num_fewshot is not None:
            mmlu_parquet.check_questions(arguments.source, questions, arguments.num_fewshot)
        rarest = mmlu_parquet.fewest(questions["dev"])
        examples = {"subject": rarest, "count": questions["dev"][rarest]}
        files.write_json(
            folder / "report.json", {"source": arguments.source, "splits": reports, "fewest_examples": examples}
        )
    for split, report in reports.items():
        print(f"{split}: {report['rows']} rows, {report['subjects']} subjects, {report['duplicates']} duplicates")


def fetch(source: str, scratch: Path) -> Path:
    """The local folder that holds the raw files."""
    remote = hub.parse(source)
    if remote:
        hub.download(remote, scratch / "raw", [f"{HUB_FOLDER}/*.parquet"])
        return scratch / "raw"
    if not Path(source).is_dir():
        raise InputError(f"{source}: expected a folder with MMLU, found none")
    return Path(source)


def find_files(source: Path) -> dict[str, list[Path]]:
    """The files of each split in whichever of the two layouts the folder has.

    InputError names a split that has none, and a file that seems to be of a split but for its name.
    """
    suffix = ".parquet" if (source / HUB_FOLDER).is_dir() else ".csv"
    patterns = LAYOUTS[suffix]
    folders = {Path(pattern).parts[0] for pattern in patterns.values()}
    found: dict[str, list[Path]] = {split: [] for split in mmlu.SPLITS}
    for path in map(Path, sources.local_files(source)):
        place = path.relative_to(source)
        splits = [split for split, pattern in patterns.items() if len(place.parts) == 2 and place.match(pattern)]
        for split in splits:
            found[split].append(path)
        if not splits and place.parts[0] in folders and suffix in place.name.lower():
            raise InputError(f"{source}: expected {', '.join(patterns.values())}, found {place}")
    for split, paths in found.items():
        if not paths:
            raise InputError(f"{source / patterns[split]}: expected files of split {split}, found none")
    return found


def write_split(split: str, paths: list[Path], folder: Path) -> tuple[Counter[str], dict]:
    """Check and write one split; returns how many questions each subject has, and the split's counts."""
    seen, questions = set(), Counter()
    with pq.ParquetWriter(folder / f"{split}.parquet", mmlu_parquet.SCHEMA) as writer:
        raw = tqdm(rows_of(paths), desc=split, unit=" rows", mininterval=1)
        while batch := [checked(where, row, split) for where, row in itertools.islice(raw, BATCH_ROWS)]:
            writer.write_table(pa.Table.from_pylist(batch, mmlu_parquet.SCHEMA))
            seen.update(hash((row["question"], *row["choices"], row["answer"])) for row in batch)
            questions.update(row["subject"] for row in batch)
    named = sum(1 for subject in questions if subject)
    rows = questions.total()
    return questions, {"rows": rows, "subjects": named, "duplicates": rows - len(seen)}


def rows_of(paths: list[Path]) -> Iterator[Row]:
    """The rows of a split's files; InputError if a file has none."""
    for path in paths:
        files.refuse_lfs_pointer(path)
        rows = parquet_rows(path) if path.suffix == ".parquet" else csv_rows(path)
        first = next(rows, None)
        if not first:
            raise InputError(f"{path}: the file holds no rows")
        yield first
        yield from rows


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of one parquet file of the Hub."""
    batches = mmlu_parquet.read_batches(path, mmlu_parquet.SCHEMA.names)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of one original CSV file but for blank lines; the subject is in the file's name."""
    text_files.check_encoding(path)
    subject = path.stem.removesuffix(f"_{path.parent.name}")
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, fields in enumerate(csv.reader(stream, strict=True), start=1):
                is_blank = len(fields) < 2 and not "".join(fields).strip()
                if not is_blank:
                    where = f"{path}, row {number}"
                    yield where, {"subject": subject, **read_fields(where, fields)}
    except csv.Error as error:
        raise InputError(f"{path}, after row {number}: not CSV ({error})") from None


def read_fields(where: str, fields: list[str]) -> dict:
    """The fields of a CSV row in the Hub's columns; InputError if they are not MMLU's."""
    if len(fields) != len(CSV_FIELDS):
        raise InputError(f"{where}: expected {len(CSV_FIELDS)} columns, found {len(fields)}")
    question, *choices, letter = fields
    if question.startswith(BYTE_ORDER_MARK):
        raise InputError(f"{where}: expected a byte order mark at the start of the file alone, found one in it")
    if letter not in mmlu.LETTERS:
        raise InputError(f"{where}: expected an answer A-D, found {letter!r}")
    return {"question": question, "choices": choices, "answer": mmlu.LETTERS.index(letter)}


def checked(where: str, row: dict, split: str) -> dict:
    """The row, which must have a question and four choices, texts that are not empty, a subject and an answer 0-3."""
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or len(choices) != len(mmlu.LETTERS):
        raise InputError(f"{where}: expected 4 choices, found {choices!r}")
    texts = {"question": row["question"]}
    texts |= {f"choice {letter}": choice for letter, choice in zip(mmlu.LETTERS, choices, strict=True)}
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise InputError(f"{where}: {name}: expected a text, found {text!r}")
    if type(answer) is not int or answer not in range(len(mmlu.LETTERS)):
        raise InputError(f"{where}: expected an answer 0-3, found {answer!r}")
    return row | {"subject": checked_subject(where, row["subject"], split)}


def checked_subject(where: str, subject: object, split: str) -> str:
    """The subject, one of MMLU's; of auxiliary_train any or, as on the Hub, none: nothing asks for it."""
    if split == mmlu.TRAIN_SPLIT:
        if not isinstance(subject, str | None):
            raise InputError(f"{where}: subject: expected a text or none, found {subject!r}")
        return subject or ""
    if subject not in mmlu.SUBJECTS:
        raise InputError(f"{where}: subject: expected one of MMLU's {len(mmlu.SUBJECTS)}, found {subject!r}")
    return subject


def check_subjects(source: str, questions: dict[str, Counter[str]]) -> None:
    """InputError names a subject that has examples and no test questions, as where a file is missing."""
    for split in mmlu.EVALUATION_SPLITS:
        for subject in sorted(questions[split].keys() - questions["test"].keys()):
            raise InputError(f"{source}: expected '{subject}', which {split} has, in test too, found no question of it")


if __name__ == "__main__":
    errors.run(main)
