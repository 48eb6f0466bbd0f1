"""A user's questions are converted to MMLU's schema from three layouts; mistakes are one line and leave no file."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import download_mmlu
import download_questions
from int4_qat.data import mmlu, mmlu_parquet
from int4_qat.system import sources
from int4_qat.system.errors import InputError
from programs import LFS_POINTER, run_in_process

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TWO = {"question": "Is it?", "choices": ["yes", "no"], "answer": 1}
MANY = {"question": "Which one,\nof all?", "choices": [f"choice {letter}" for letter in LETTERS], "answer": 25}
ROWS = [TWO, MANY]


def write_table(path, rows, **columns):
    """Write rows to a parquet file and return its path; each further column has one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row | columns for row in rows]), path)
    return path


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = [[row["question"], *row["choices"], LETTERS[row["answer"]]] for row in rows]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(fields)


def kept(rows, subject):
    return [row | {"subject": subject} for row in rows]


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Return a function that runs the program on a source, as the set `mine`, and returns the rows of each split."""

    def run(source, shots=0):
        folder = tmp_path / "questions" / "mine"
        options = ("--name", "mine", "--num-fewshot", shots, "--output", folder)
        run_in_process(download_questions, monkeypatch, "--source", source, *options)
        tables = {path.stem: pq.read_table(path) for path in sorted(folder.glob("*.parquet"))}
        assert all(table.schema.equals(mmlu_parquet.SCHEMA) for table in tables.values())
        return {split: table.to_pylist() for split, table in tables.items()}

    return run


@pytest.fixture
def refused(download, tmp_path):
    """Return a function that checks that a source is refused and leaves no file, and returns the one-line message."""

    def run(source, shots=0):
        with pytest.raises(InputError) as error:
            download(source, shots)
        (line,) = str(error.value).splitlines()
        assert not list((tmp_path / "questions").glob("*"))
        return line

    return run


@pytest.mark.parametrize("column", ["group", "subject"])
def test_a_table_with_groups(tmp_path, download, column):
    path = write_table(tmp_path / "own.parquet", [*ROWS, *ROWS], **{column: "first group"}, comment="not read")
    assert download(path) == {"test": kept([*ROWS, *ROWS], "first group")}
    report = json.loads((tmp_path / "questions" / "mine" / "report.json").read_text())
    assert report == {"source": str(path), "splits": {"test": {"rows": 4, "subjects": 1, "duplicates": 2}}}


def test_a_table_without_groups_is_called_as_the_set(tmp_path, download):
    assert download(write_table(tmp_path / "own.parquet", ROWS)) == {"test": kept(ROWS, "mine")}


def test_answers_may_be_letters(tmp_path, download):
    letters = [row | {"answer": LETTERS[row["answer"]]} for row in ROWS]
    assert download(write_table(tmp_path / "own.parquet", letters)) == {"test": kept(ROWS, "mine")}


@pytest.mark.parametrize("shots", [0, 2])
def test_the_original_layout(tmp_path, download, shots):
    for split in ("dev", "test"):
        write_csv(tmp_path / "own" / split / f"pots and pans_{split}.csv", ROWS)
        write_csv(tmp_path / "own" / split / f"a_b_{split}.csv", [TWO, TWO])
    write_csv(tmp_path / "own" / "val" / "of another_group_val.csv", [TWO])
    (tmp_path / "own" / "val" / "broken.csv.gz").write_text("left alone")
    expected = [*kept([TWO, TWO], "a_b"), *kept(ROWS, "pots and pans")]
    assert download(tmp_path / "own", shots) == {"dev": expected, "test": expected}
    report = json.loads((tmp_path / "questions" / "mine" / "report.json").read_text())
    assert report["fewest_examples"] == {"subject": "a_b", "count": 2}


def test_the_layout_of_the_hub(tmp_path, download):
    """The test split may be in several shards, and all other splits are ignored."""
    folder = tmp_path / "own" / "all"
    write_table(folder / "test-00000-of-00002.parquet", ROWS, subject="one")
    write_table(folder / "test-00001-of-00002.parquet", ROWS, subject="two")
    for name in ("train-00000-of-00001.parquet", "auxiliary_train-0.parquet", "validation-0.parquet", "x.parquet"):
        (folder / name).write_text("left alone")
    assert download(tmp_path / "own") == {"test": [*kept(ROWS, "one"), *kept(ROWS, "two")]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": ""}, "question: expected a text, found ''"),
        ({"choices": ["only"]}, "expected 2 to 26 choices, found ['only']"),
        ({"choices": [*MANY["choices"], "27th"]}, "expected 2 to 26 choices, found ["),
        ({"choices": ["yes", None]}, "choice B: expected a text, found None"),
        ({"answer": 2}, "expected an answer 0-1 or A-B, found 2"),
        ({"answer": -1}, "expected an answer 0-1 or A-B, found -1"),
        ({"answer": True}, "expected an answer 0-1 or A-B, found True"),
        ({"answer": 1.0}, "expected an answer 0-1 or A-B, found 1.0"),
        ({"answer": "C"}, "expected an answer 0-1 or A-B, found 'C'"),
        ({"answer": "b"}, "expected an answer 0-1 or A-B, found 'b'"),
        ({"answer": "1"}, "expected an answer 0-1 or A-B, found '1'"),
        ({"answer": "AB"}, "expected an answer 0-1 or A-B, found 'AB'"),
        ({"answer": None}, "expected an answer 0-1 or A-B, found None"),
        ({"group": ""}, "group: expected a text, found ''"),
        ({"group": None}, "group: expected a text, found None"),
        ({"subject": 7}, "group: expected a text, found 7"),
    ],
)
def test_a_bad_row_of_a_table(tmp_path, refused, changes, expected):
    path = write_table(tmp_path / "own.parquet", [TWO | changes])
    assert refused(path).startswith(f"{path}, row 1: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q,1,2,B\nq,1,A\n", "row 2: expected 4 to 28 columns, found 3"),
        (f"q{',x' * 27},A\n", "row 1: expected 4 to 28 columns, found 29"),
        ("q,1,2,C\n", "row 1: expected an answer A-B, found 'C'"),
        ("q,1,2,1\n", "row 1: expected an answer A-B, found '1'"),
        ("q,1,,A\n", "row 1: choice B: expected a text, found ''"),
        ('"q,1,2,A\n', "after row 0: expected CSV"),
    ],
)
def test_a_bad_row_of_a_csv_file(tmp_path, refused, text, expected):
    path = tmp_path / "own" / "test" / "pots_test.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    line = refused(tmp_path / "own")
    assert line.startswith(str(path))
    assert expected in line


def test_files_that_are_no_questions(tmp_path, refused):
    path = tmp_path / "own.parquet"
    assert refused(path) == f"{path}: expected a folder with questions or a .parquet file, found none"
    (tmp_path / "own.json").write_text("[]")
    assert refused(tmp_path / "own.json").endswith("expected a folder with questions or a .parquet file, found none")
    write_table(path, ROWS, group="one", subject="two")
    assert refused(path) == f"{path}: expected one of the columns group and subject, found both"
    pq.write_table(pa.Table.from_pylist(ROWS).drop_columns("answer"), path)
    assert refused(path) == f"{path}: expected the columns question, choices, answer, found no answer"
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), path)
    assert refused(path) == f"{path}: expected rows, found none"
    path.write_bytes(b"PAR1")
    assert refused(path).startswith(f"{path}: expected a complete parquet file")
    path.write_text(LFS_POINTER)
    assert refused(path) == f"{path}: expected a file, found a git-lfs pointer to it; run `git lfs pull`"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all/test.parquet", "expected all/dev-*.parquet, all/test-*.parquet"),
        ("all/Dev-0.PARQUET", "expected all/dev-*.parquet, all/test-*.parquet"),
        ("all/test/0.parquet", "expected all/dev-*.parquet, all/test-*.parquet"),
        ("test/pots.CSV", "expected dev/*.csv, test/*.csv"),
        ("dev/old/pots.csv", "expected dev/*.csv, test/*.csv"),
    ],
)
def test_a_file_of_another_name_is_not_left_out_in_silence(tmp_path, refused, name, expected):
    source = tmp_path / "own"
    write_csv(source / "test" / "pots_test.csv", ROWS)
    if name.startswith("all"):
        write_table(source / "all" / "test-0.parquet", ROWS)
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).touch()
    assert refused(source) == f"{source}: {expected}, found {name}"


def test_a_folder_without_test_questions(tmp_path, refused):
    write_csv(tmp_path / "own" / "dev" / "pots_dev.csv", ROWS)
    assert refused(tmp_path / "own") == f"{tmp_path}/own/test/*.csv: expected files of split test, found none"


def test_a_csv_file_without_the_name_of_a_group(tmp_path, refused):
    write_csv(tmp_path / "own" / "test" / "_test.csv", ROWS)
    assert refused(tmp_path / "own") == f"{tmp_path}/own/test/_test.csv, row 1: group: expected a text, found ''"


def test_what_a_group_needs(tmp_path, refused):
    source = tmp_path / "own"
    write_csv(source / "test" / "pots_test.csv", [TWO])
    assert refused(source) == f"{source}: test: expected 2 or more questions of 'pots', found 1"
    write_csv(source / "test" / "pots_test.csv", ROWS)
    reason = "the examples of num_fewshot 2"
    assert refused(source, 2) == f"{source}: expected a split dev next to test, for {reason}, found none"
    write_csv(source / "dev" / "pots_dev.csv", [TWO])
    assert refused(source, 2) == f"{source}: dev: expected 2 or more questions of 'pots', {reason}, found 1"
    write_csv(source / "dev" / "pans_dev.csv", [TWO])
    assert refused(source) == f"{source}: expected test questions of 'pans', which dev has, found none"
    table = write_table(tmp_path / "own.parquet", ROWS)
    assert (
        refused(table, 1)
        == f"{table}: expected a split dev next to test, for the examples of num_fewshot 1, found none"
    )


def test_a_failure_keeps_what_was_there(tmp_path, download):
    download(write_table(tmp_path / "own.parquet", ROWS))
    with pytest.raises(InputError):
        download(write_table(tmp_path / "own.parquet", [TWO]))
    assert pq.read_table(tmp_path / "questions" / "mine" / "test.parquet").to_pylist() == kept(ROWS, "mine")


def test_what_snakemake_depends_upon(tmp_path):
    """A single file counts whatever its name, since the user named it; a folder's hidden files do not."""
    path = write_table(tmp_path / ".own.parquet", ROWS)
    assert sources.local_files(path) == sources.local_files(str(path)) == [str(path)]
    assert sources.local_files(tmp_path) == sources.local_files(tmp_path / "nowhere") == []


@pytest.mark.parametrize("layout", ["csv", "hub"])
def test_mmlu_for_training_alone(monkeypatch, tmp_path, layout):
    """The splits that are not downloaded are not checked."""
    four = [{"question": "q", "choices": list("wxyz"), "answer": 3}]
    if layout == "csv":
        write_csv(tmp_path / "raw" / "auxiliary_train" / "race.csv", four)
        write_csv(tmp_path / "raw" / "test" / "baking_test.CSV", four)
    else:
        write_table(tmp_path / "raw" / "all" / "auxiliary_train-0.parquet", four, subject="")
        (tmp_path / "raw" / "all" / "val.parquet").touch()
    options = ("--source", tmp_path / "raw", "--output", tmp_path / "mmlu", "--splits", mmlu.TRAIN_SPLIT)
    run_in_process(download_mmlu, monkeypatch, *options)
    assert sorted(path.name for path in (tmp_path / "mmlu").iterdir()) == ["auxiliary_train.parquet", "report.json"]
    report = json.loads((tmp_path / "mmlu" / "report.json").read_text())
    assert report.keys() == {"source", "splits"}
    assert report["splits"].keys() == {mmlu.TRAIN_SPLIT}
    (tmp_path / "raw" / ("auxiliary_train/old.csv.gz" if layout == "csv" else "all/Auxiliary_train.parquet")).touch()
    with pytest.raises(InputError, match=r"expected (all/)?auxiliary_train"):
        run_in_process(download_mmlu, monkeypatch, *options)
