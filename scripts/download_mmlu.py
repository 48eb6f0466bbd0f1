"""Fetch MMLU into one schema (question, subject, choices, answer), with one checked parquet file per split.

The source is the Hub at a pinned commit or a local folder, in the Hub's layout (all/<split>-*.parquet) or as the
original CSV files (<split>/<subject>_<split>.csv: question, A, B, C, D, answer). A file or row that is not what MMLU
promises ends the program with one line that names it. Duplicates are counted in report.json, not dropped. Nothing is
expected of splits that are not asked for: the workflow asks for auxiliary_train, which it trains on, apart from those
that it evaluates, and has the latter checked both times, so that no training precedes an error in them.

    python scripts/download_mmlu.py --source /data/mmlu --num-fewshot 0 --output resources/mmlu
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from int4_qat.data import hub, mmlu, mmlu_parquet, question_files
from int4_qat.system import errors, files, scratch
from int4_qat.system.errors import InputError

CHOICES = range(len(mmlu.LETTERS), len(mmlu.LETTERS) + 1)
REPORT = "report.json"
WRITTEN = (REPORT, *(f"{split}.parquet" for split in mmlu.SPLITS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="hf://datasets/<owner>/<name>@<commit> or a local folder")
    parser.add_argument("--splits", nargs="+", default=mmlu.SPLITS, choices=mmlu.SPLITS, help="all splits if omitted")
    parser.add_argument(
        "--check", nargs="*", default=[], choices=mmlu.SPLITS, help="splits to check as well, but not to write"
    )
    parser.add_argument(
        "--num-fewshot", type=int, help="number of examples before each question; if given, check that dev has enough"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for <split>.parquet and report.json")
    arguments = parser.parse_args()
    with scratch.folder() as work, files.whole(arguments.output, WRITTEN) as folder:
        folder.mkdir()
        splits = [split for split in mmlu.SPLITS if split in {*arguments.splits, *arguments.check}]
        found = question_files.find_files(fetch(arguments.source, splits, work), splits)
        questions, reports = {}, {}
        for split, paths in found.items():
            rows = question_files.rows_of(paths, read)
            checked_rows = (checked(where, row, split) for where, row in rows)
            place = folder if split in arguments.splits else work
            questions[split], reports[split] = question_files.write_split(split, checked_rows, place)
        report = {"source": arguments.source, "splits": {split: reports[split] for split in arguments.splits}}
        if set(mmlu.EVALUATION_SPLITS) <= questions.keys():
            report |= check_evaluated(arguments.source, questions, arguments.num_fewshot)
        files.write_json(folder / REPORT, report)
    for split, counts in reports.items():
        print(f"{split}: {counts['rows']} rows, {counts['subjects']} subjects, {counts['duplicates']} duplicates")


def fetch(source: str, splits: list[str], work: Path) -> Path:
    """Return the local folder that holds the raw files."""
    remote = hub.parse(source)
    if remote:
        hub.download(remote, work / "raw", patterns(splits))
        return work / "raw"
    if not Path(source).is_dir():
        raise InputError(f"{source}: expected a folder with MMLU, found none")
    return Path(source)


def patterns(splits: list[str]) -> list[str]:
    """Return patterns of the Hub's files to fetch: for all splits, their whole folder, which may hold no other file."""
    if set(splits) == set(mmlu.SPLITS):
        return [f"{question_files.HUB_FOLDER}/*.parquet"]
    return question_files.hub_patterns(splits)


def read(path: Path) -> Iterator[question_files.Row]:
    """Return the rows of a file in either layout."""
    if path.suffix == ".parquet":
        return question_files.parquet_rows(path, mmlu_parquet.SCHEMA.names)
    return question_files.csv_rows(path, CHOICES)


def checked(where: str, row: dict, split: str) -> dict:
    """Return a row; raise InputError unless it has a question, four choices, a subject and an answer 0-3."""
    question_files.check_texts(where, row, CHOICES)
    if not question_files.is_number_of(row["answer"], row["choices"]):
        raise InputError(f"{where}: expected an answer 0-3, found {row['answer']!r}")
    return row | {"subject": checked_subject(where, row["subject"], split)}


def checked_subject(where: str, subject: object, split: str) -> str:
    """Return the subject; raise InputError unless it is one of MMLU's.

    In auxiliary_train it may be any text or, as on the Hub, missing, since nothing asks for it.
    """
    if split == mmlu.TRAIN_SPLIT:
        if not isinstance(subject, str | None):
            raise InputError(f"{where}: subject: expected a text or none, found {subject!r}")
        return subject or ""
    if subject not in mmlu.SUBJECTS:
        raise InputError(f"{where}: subject: expected one of MMLU's {len(mmlu.SUBJECTS)}, found {subject!r}")
    return subject


def check_evaluated(source: str, questions: dict, num_fewshot: int | None) -> dict:
    """Return what the report says about the evaluated splits; raise InputError if they cannot be scored."""
    question_files.refuse_untested(source, {split: questions[split] for split in mmlu.EVALUATION_SPLITS})
    if num_fewshot is not None:
        mmlu_parquet.check_questions(source, questions, num_fewshot)
    rarest = mmlu_parquet.fewest(questions["dev"], mmlu.SUBJECTS)
    return {"fewest_examples": {"subject": rarest, "count": questions["dev"][rarest]}}


if __name__ == "__main__":
    errors.run(main)
