"""Both layouts give the same rows; each kind of bad data gives one line that names it, and leaves nothing."""

import csv
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from programs import LFS_POINTER, run_script

GOOD = ['What, is\n"this"? é', "one", "two", "three", "four", "C"]
FOLDERS = ["auxiliary_train", "dev", "val", "test"]


@pytest.fixture
def csv_source(tmp_path):
    for folder in FOLDERS:
        (tmp_path / "raw" / folder).mkdir(parents=True)
        write_csv(tmp_path / "raw" / folder / f"anatomy_{folder}.csv", [GOOD, GOOD])
    return tmp_path / "raw"


@pytest.fixture
def parquet_source(tmp_path):
    row = dict(question=GOOD[0], subject="anatomy", choices=GOOD[1:5], answer=2)
    (tmp_path / "raw" / "all").mkdir(parents=True)
    for split in ("auxiliary_train", "dev", "validation", "test"):
        pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "raw" / "all" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "raw"


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


def download(source, tmp_path):
    return run_script("download_mmlu", "--source", source, "--output", tmp_path / "mmlu")


def assert_fails(source, tmp_path, *expected):
    result = download(source, tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for text in expected:
        assert text in last
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_both_layouts_give_one_schema(csv_source, parquet_source, tmp_path):
    # both fixtures share tmp_path/raw: the parquet layout counts first, then the CSV files alone
    assert download(parquet_source, tmp_path).returncode == 0
    first = {split: pq.read_table(tmp_path / "mmlu" / f"{split}.parquet") for split in ("dev", "test", "validation")}
    shutil.rmtree(parquet_source / "all")
    assert download(csv_source, tmp_path).returncode == 0
    for split, table in first.items():
        assert pq.read_table(tmp_path / "mmlu" / f"{split}.parquet").equals(table)
    assert first["test"].to_pylist()[0] == dict(question=GOOD[0], subject="anatomy", choices=GOOD[1:5], answer=2)
    report = json.loads((tmp_path / "mmlu" / "report.json").read_text())
    assert report["splits"]["test"] == {"rows": 2, "subjects": 1, "duplicates": 1}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([GOOD, GOOD[:5]], ["row 2", "expected 6 columns, found 5"]),
        ([[*GOOD[:3], "", *GOOD[4:]]], ["row 1", "choice C: expected a text, found ''"]),
        ([GOOD, GOOD, [*GOOD[:5], "E"]], ["row 3", "expected an answer A-D, found 'E'"]),
        ([["", *GOOD[1:]]], ["row 1", "question: expected a text, found ''"]),
        ([], ["the file holds no rows"]),
    ],
)
def test_bad_rows(csv_source, tmp_path, rows, expected):
    write_csv(csv_source / "test" / "anatomy_test.csv", rows)
    assert_fails(csv_source, tmp_path, "anatomy_test.csv", *expected)


def test_wrong_encoding(csv_source, tmp_path):
    (csv_source / "dev" / "anatomy_dev.csv").write_bytes("é,1,2,3,4,A\n".encode("latin-1"))
    assert_fails(csv_source, tmp_path, "anatomy_dev.csv", "not UTF-8")


def test_unclosed_quote(csv_source, tmp_path):
    (csv_source / "dev" / "anatomy_dev.csv").write_text('"open,1,2,3,4,A\n')
    assert_fails(csv_source, tmp_path, "anatomy_dev.csv", "not CSV")


def test_missing_split(csv_source, tmp_path):
    shutil.rmtree(csv_source / "val")
    assert_fails(csv_source, tmp_path, "split validation")


def test_no_folder(csv_source, tmp_path):
    assert_fails(tmp_path / "nowhere", tmp_path, "nowhere", "found none")


def test_truncated_parquet(parquet_source, tmp_path):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    assert_fails(parquet_source, tmp_path, file.name, "not a whole parquet file")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": 5}, "question: expected a text, found 5"),
        ({"subject": ""}, "subject: expected a text, found ''"),
        ({"subject": None}, "subject: expected a text, found None"),
        ({"choices": "abcd"}, "expected 4 choices, found 'abcd'"),
        ({"choices": [1, 2, 3, 4]}, "choice A: expected a text, found 1"),
        ({"answer": True}, "expected an answer 0-3, found True"),
        ({"answer": 4}, "expected an answer 0-3, found 4"),
    ],
)
def test_parquet_of_other_types(parquet_source, tmp_path, changes, expected):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    row = dict(question="q", subject="anatomy", choices=GOOD[1:5], answer=2) | changes
    pq.write_table(pa.Table.from_pylist([row]), file)
    assert_fails(parquet_source, tmp_path, f"{file.name}, row 1: {expected}")


def test_a_pointer_of_git_lfs_is_called_so(csv_source, tmp_path):
    file = csv_source / "test" / "anatomy_test.csv"
    file.write_text(LFS_POINTER)
    assert_fails(csv_source, tmp_path, f"{file}: expected the file, found git-lfs's pointer to it; run `git lfs pull`")


def test_a_parquet_file_that_is_a_pointer_of_git_lfs(parquet_source, tmp_path):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    file.write_text(LFS_POINTER)
    assert_fails(parquet_source, tmp_path, f"{file}: expected the file, found git-lfs's pointer to it")


def test_missing_columns(parquet_source, tmp_path):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns("subject"), file)
    assert_fails(parquet_source, tmp_path, file.name, "subject missing")


def test_a_failure_keeps_what_was_there(csv_source, tmp_path):
    assert download(csv_source, tmp_path).returncode == 0
    before = (tmp_path / "mmlu" / "test.parquet").read_bytes()
    write_csv(csv_source / "test" / "anatomy_test.csv", [])
    assert download(csv_source, tmp_path).returncode == 1
    assert (tmp_path / "mmlu" / "test.parquet").read_bytes() == before


def test_the_real_mmlu(mmlu_dir, tmp_path):
    result = download(mmlu_dir, tmp_path)
    assert result.returncode == 0, result.stderr
    splits = json.loads((tmp_path / "mmlu" / "report.json").read_text())["splits"]
    assert splits["test"] == {"rows": 14_042, "subjects": 57, "duplicates": 105}
    assert (splits["validation"]["rows"], splits["dev"]["rows"]) == (1_531, 285)
