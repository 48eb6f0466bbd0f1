"""Fetch the user's own multiple-choice questions into MMLU's schema: checked parquet files of test and, if any, dev.

The source is a .parquet file of test questions, or a folder, local or on the Hub at a pinned commit, in one of MMLU's
layouts with any groups in place of its subjects. The layouts are all/dev-*.parquet and all/test-*.parquet or, in a
local folder only, dev/<group>_dev.csv and test/<group>_test.csv without a header (question, 2 to 26 choices, letter of
the answer). A parquet file has the columns question, choices (2 to 26 texts), answer (a letter, or the number of the
choice from 0) and, if it has groups, group or subject. Other splits are ignored. A file or row that does not fit ends
the program with one line that names it.

The group is written to the column `subject`; a question without a group gets the name of the set. report.json has the
counts.

    python scripts/download_questions.py --source /data/mine --name mine --num-fewshot 0 \\
        --output resources/questions/mine
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from int4_qat.data import hub, letters, mmlu_parquet, parquet_files, question_files
from int4_qat.system import errors, files, scratch
from int4_qat.system.errors import InputError

SPLITS = ("dev", "test")
CHOICES = range(2, len(letters.ALL) + 1)
COLUMNS = ["question", "choices", "answer"]
GROUP_COLUMNS = ("group", "subject")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--source", required=True, help="hf://datasets/<owner>/<name>@<commit>, a local folder or a .parquet file"
    )
    parser.add_argument("--name", required=True, help="name of the set, and the group of questions that have none")
    parser.add_argument(
        "--num-fewshot",
        required=True,
        type=int,
        help="number of examples before each question; the dev split must have them for each group",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder for <split>.parquet and report.json")
    arguments = parser.parse_args()
    with scratch.folder() as work, files.whole(arguments.output) as folder:
        folder.mkdir()
        questions, reports = {}, {}
        for split, paths in fetch(arguments.source, work).items():
            rows = question_files.rows_of(paths, lambda path: read(path, arguments.name))
            checked_rows = (checked(where, row) for where, row in rows)
            questions[split], reports[split] = question_files.write_split(split, checked_rows, folder)
        check_groups(arguments.source, questions, arguments.num_fewshot)
        report = {"source": arguments.source, "splits": reports}
        if "dev" in questions:
            rarest = mmlu_parquet.fewest(questions["dev"], questions["test"])
            report["fewest_examples"] = {"subject": rarest, "count": questions["dev"][rarest]}
        files.write_json(folder / "report.json", report)
    for split, counts in reports.items():
        print(f"{split}: {counts['rows']} rows, {counts['subjects']} groups, {counts['duplicates']} duplicates")


def fetch(source: str, work: Path) -> dict[str, list[Path]]:
    """Return the local files of each split; raise InputError if there are no test questions."""
    remote, local = hub.parse(source), Path(source)
    if remote:
        local = work / "raw"
        hub.download(remote, local, question_files.hub_patterns(SPLITS))
    if local.is_dir():
        return question_files.find_files(local, SPLITS, optional=("dev",))
    if local.is_file() and local.suffix == ".parquet":
        return {"test": [local]}
    raise InputError(f"{source}: expected a folder with questions or a .parquet file, found none")


def read(path: Path, name: str) -> Iterator[question_files.Row]:
    """Return the rows of a file in either layout, with a subject."""
    return parquet_rows(path, name) if path.suffix == ".parquet" else question_files.csv_rows(path, CHOICES)


def parquet_rows(path: Path, name: str) -> Iterator[question_files.Row]:
    """Yield the rows of a table, with the group as the subject."""
    found = parquet_files.open_file(path, COLUMNS).schema_arrow.names
    groups = [column for column in GROUP_COLUMNS if column in found]
    if len(groups) > 1:
        raise InputError(f"{path}: expected one of the columns {' and '.join(groups)}, found both")
    for where, row in question_files.parquet_rows(path, [*COLUMNS, *groups]):
        yield where, {"subject": row[groups[0]] if groups else name} | {column: row[column] for column in COLUMNS}


def checked(where: str, row: dict) -> dict:
    """Return a row with its answer as a number; raise InputError unless it has a group and the answer is a choice."""
    question_files.check_texts(where, row, CHOICES)
    known, answer, group = letters.first(len(row["choices"])), row["answer"], row["subject"]
    if not isinstance(group, str) or not group.strip():
        raise InputError(f"{where}: group: expected a text, found {group!r}")
    if answer in known:
        return row | {"answer": known.index(answer)}
    if not question_files.is_number_of(answer, row["choices"]):
        expected = f"an answer 0-{len(known) - 1} or {known[0]}-{known[-1]}"
        raise InputError(f"{where}: expected {expected}, found {answer!r}")
    return row


def check_groups(source: str, questions: dict, num_fewshot: int) -> None:
    """Raise InputError unless each group has at least two test questions and the examples it needs."""
    if num_fewshot and "dev" not in questions:
        reason = f"the examples of num_fewshot {num_fewshot}"
        raise InputError(f"{source}: expected a split dev next to test, for {reason}, found none")
    question_files.refuse_untested(source, questions)
    mmlu_parquet.check_subjects(source, questions, questions["test"], num_fewshot)


if __name__ == "__main__":
    errors.run(main)
