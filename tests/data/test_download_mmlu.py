"""Both layouts give the same rows; each kind of bad data is refused with one line that names it, leaving no file."""

import codecs
import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import download_mmlu
from int4_qat.system import sources
from int4_qat.system.errors import InputError
from programs import LFS_POINTER, run_in_process

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


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Return a function that runs the program on a source and writes to tmp_path / "mmlu"."""
    return lambda source: run_in_process(download_mmlu, monkeypatch, "--source", source, "--output", tmp_path / "mmlu")


@pytest.fixture
def refused(download, tmp_path):
    """Return a function that checks that a source is refused: one line has the expected words, and no file is left."""

    def run(source, *expected):
        with pytest.raises(InputError) as error:
            download(source)
        (line,) = str(error.value).splitlines()
        for text in expected:
            assert text in line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]

    return run


def test_both_layouts_give_one_schema(csv_source, parquet_source, tmp_path, download):
    # both fixtures share tmp_path/raw; the parquet layout takes precedence until it is removed
    download(parquet_source)
    first = {split: pq.read_table(tmp_path / "mmlu" / f"{split}.parquet") for split in ("dev", "test", "validation")}
    shutil.rmtree(parquet_source / "all")
    download(csv_source)
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
        ([GOOD, [*GOOD[:5], "A\nB"]], ["row 2", r"expected an answer A-D, found 'A\nB'"]),
        ([GOOD, [""] * 6], ["row 2", "expected an answer A-D, found ''"]),
        ([GOOD, ["\ufeffWhat?", *GOOD[1:]]], ["row 2", "expected no byte order mark after the start of the file"]),
        ([], ["expected rows, found none"]),
        ([[], [" "]], ["expected rows, found none"]),
    ],
)
def test_bad_rows(csv_source, rows, expected, refused):
    write_csv(csv_source / "test" / "anatomy_test.csv", rows)
    refused(csv_source, "anatomy_test.csv", *expected)


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("end", "quoting"),
    [("\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_MINIMAL), ("\r\n", csv.QUOTE_ALL), ("\r", csv.QUOTE_ALL)],
)
def test_what_editors_and_spreadsheets_write_is_no_part_of_a_text(csv_source, tmp_path, mark, end, quoting, download):
    """A byte order mark, other line endings, quotes and blank lines do not change the rows."""
    rows = [["first", *GOOD[1:]], [" se\ncond\ufeff ", *GOOD[1:]]]
    lines = []
    for row in rows:
        stream = io.StringIO(newline="")
        csv.writer(stream, quoting=quoting, lineterminator=end).writerow(row)
        lines.append(stream.getvalue())
    text = end.join([lines[0], "  ", lines[1], "", ""])
    (csv_source / "test" / "anatomy_test.csv").write_bytes(mark + text.encode())
    download(csv_source)
    written = pq.read_table(tmp_path / "mmlu" / "test.parquet")
    assert written["question"].to_pylist() == [row[0] for row in rows]
    assert written["answer"].to_pylist() == [2, 2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one,1,2,3,4,A\né,1,2,3,4,A\n".encode("latin-1"), r"line 2: expected UTF-8, found b'\xe9'"),
        ("é,1,2,3,4,A\n".encode("utf-16"), "expected UTF-8, found UTF-16; save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "é,1,2,3,4,A\n".encode("utf-16-be"), "expected UTF-8, found UTF-16; save it as UTF-8"),
    ],
)
def test_wrong_encoding(csv_source, content, expected, refused):
    (csv_source / "dev" / "anatomy_dev.csv").write_bytes(content)
    refused(csv_source, "anatomy_dev.csv", expected)


# Files that systems and editors leave next to data: macOS, Windows, Excel, LibreOffice, Emacs, vim, gedit, Jupyter.
LEFT_BEHIND = [
    *("._{name}", ".{name}.swp", ".~{name}", "~${name}", ".~lock.{name}#", "#{name}#", "{name}~", "{name}.bak"),
    *(".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/{name}", "__MACOSX/._{name}", ".git/{name}"),
]


@pytest.mark.parametrize("layout", ["csv_source", "parquet_source"])
def test_what_is_left_beside_the_data_is_none(request, tmp_path, download, layout):
    source = request.getfixturevalue(layout)
    read = sources.local_files(source)
    for file in map(Path, read):
        for left in LEFT_BEHIND:
            place = file.parent / left.format(name=file.name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(b"\x00\xff")
    assert sources.local_files(source) == read
    download(source)
    assert json.loads((tmp_path / "mmlu" / "report.json").read_text())["splits"]["test"]["rows"] == 2


@pytest.mark.parametrize(
    ("layout", "name", "expected"),
    [
        ("csv_source", "test/virology_test.CSV", "expected auxiliary_train/*.csv, dev/*.csv, val/*.csv, test/*.csv"),
        ("csv_source", "auxiliary_train/race.csv.gz", "expected auxiliary_train/*.csv"),
        ("csv_source", "auxiliary_train/old/race.csv", "expected auxiliary_train/*.csv"),
        ("csv_source", "test/virology_test.csv.txt", "expected auxiliary_train/*.csv"),
        ("parquet_source", "all/test.parquet", "expected all/auxiliary_train-*.parquet, all/dev-*.parquet"),
        ("parquet_source", "all/val-00000-of-00001.parquet", "expected all/auxiliary_train-*.parquet"),
        ("parquet_source", "all/test/0000.parquet", "expected all/auxiliary_train-*.parquet"),
        ("parquet_source", "all/TEST-00000-of-00001.PARQUET", "expected all/auxiliary_train-*.parquet"),
    ],
)
def test_a_file_of_another_name_is_not_left_out_in_silence(request, layout, name, expected, refused):
    source = request.getfixturevalue(layout)
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).touch()
    refused(source, f"{source}: {expected}", f", found {name}")


def test_a_linked_folder_is_read_and_depended_upon(csv_source, tmp_path, download):
    linked = tmp_path / "raw" / "linked"
    linked.mkdir()
    for folder in FOLDERS:
        (linked / folder).symlink_to(csv_source / folder)
    download(linked)
    assert sources.local_files(linked) == sorted(str(linked / name / f"anatomy_{name}.csv") for name in FOLDERS)


def test_a_subject_without_a_test_file(csv_source, refused):
    write_csv(csv_source / "dev" / "virology_dev.csv", [GOOD])
    refused(csv_source, f"{csv_source}: expected test questions of 'virology', which dev has")


@pytest.mark.parametrize("folder", ["dev", "val", "test"])
def test_subjects_are_mmlus(csv_source, folder, refused):
    write_csv(csv_source / folder / f"baking_{folder}.csv", [GOOD])
    expected = f"baking_{folder}.csv, row 1: subject: expected one of MMLU's 57, found 'baking'"
    refused(csv_source, expected)


def test_training_questions_may_be_of_any_subject(csv_source, tmp_path, download):
    write_csv(csv_source / "auxiliary_train" / "baking.csv", [GOOD])
    download(csv_source)
    assert json.loads((tmp_path / "mmlu" / "report.json").read_text())["splits"]["auxiliary_train"]["subjects"] == 2


def test_unclosed_quote(csv_source, refused):
    (csv_source / "dev" / "anatomy_dev.csv").write_text('"open,1,2,3,4,A\n')
    refused(csv_source, "anatomy_dev.csv", "expected CSV")


def test_missing_split(csv_source, refused):
    shutil.rmtree(csv_source / "val")
    refused(csv_source, "split validation")


def test_no_folder(csv_source, tmp_path, refused):
    refused(tmp_path / "nowhere", "nowhere", "found none")


def test_truncated_parquet(parquet_source, refused):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    refused(parquet_source, file.name, "expected a complete parquet file")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"question": 5}, "question: expected a text, found 5"),
        ({"subject": ""}, "subject: expected one of MMLU's 57, found ''"),
        ({"subject": None}, "subject: expected one of MMLU's 57, found None"),
        ({"choices": "abcd"}, "expected 4 choices, found 'abcd'"),
        ({"choices": [1, 2, 3, 4]}, "choice A: expected a text, found 1"),
        ({"choices": GOOD[1:4]}, "expected 4 choices, found ['one', 'two', 'three']"),
        ({"choices": {"text": GOOD[1:5]}}, "expected 4 choices, found {'text': ['one', 'two', 'three', 'four']}"),
        ({"answer": True}, "expected an answer 0-3, found True"),
        ({"answer": "C"}, "expected an answer 0-3, found 'C'"),
        ({"answer": "2"}, "expected an answer 0-3, found '2'"),
        ({"answer": 2.0}, "expected an answer 0-3, found 2.0"),
        ({"answer": None}, "expected an answer 0-3, found None"),
        ({"answer": 4}, "expected an answer 0-3, found 4"),
    ],
)
def test_parquet_of_other_types(parquet_source, changes, expected, refused):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    row = dict(question="q", subject="anatomy", choices=GOOD[1:5], answer=2) | changes
    pq.write_table(pa.Table.from_pylist([row]), file)
    refused(parquet_source, f"{file.name}, row 1: {expected}")


def test_a_pointer_of_git_lfs_is_called_so(csv_source, refused):
    file = csv_source / "test" / "anatomy_test.csv"
    file.write_text(LFS_POINTER)
    refused(csv_source, f"{file}: expected a file, found a git-lfs pointer to it; run `git lfs pull`")


def test_a_parquet_file_that_is_a_pointer_of_git_lfs(parquet_source, refused):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    file.write_text(LFS_POINTER)
    refused(parquet_source, f"{file}: expected a file, found a git-lfs pointer to it")


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
@pytest.mark.parametrize(
    "choices", [pa.list_, pa.large_list, lambda text: pa.list_(text, 4)], ids=["list", "large list", "list of four"]
)
@pytest.mark.parametrize("answer", [pa.int64(), pa.int32(), pa.uint8()], ids=str)
def test_the_same_rows_in_other_types_of_arrow(parquet_source, tmp_path, text, choices, answer, download):
    """pandas writes categories and large strings, polars large lists, and numpy lists of a fixed length."""
    columns = {"answer": pa.array([2, 0], answer), "question": pa.array(["q", "r"]).cast(text)}
    columns |= {"subject": pa.array(["anatomy"] * 2).cast(text), "__index_level_0__": pa.array([7, 8])}
    columns["choices"] = pa.array([GOOD[1:5]] * 2, choices(text if pa.types.is_large_string(text) else pa.string()))
    pq.write_table(pa.table(columns), parquet_source / "all" / "test-00000-of-00001.parquet")
    download(parquet_source)
    row = dict(question="q", subject="anatomy", choices=GOOD[1:5], answer=2)
    assert pq.read_table(tmp_path / "mmlu" / "test.parquet").to_pylist() == [row, row | {"question": "r", "answer": 0}]


def test_missing_columns(parquet_source, refused):
    file = parquet_source / "all" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns("subject"), file)
    refused(parquet_source, file.name, "found no subject")


def test_a_failure_keeps_what_was_there(csv_source, tmp_path, download):
    download(csv_source)
    before = (tmp_path / "mmlu" / "test.parquet").read_bytes()
    write_csv(csv_source / "test" / "anatomy_test.csv", [])
    with pytest.raises(InputError):
        download(csv_source)
    assert (tmp_path / "mmlu" / "test.parquet").read_bytes() == before


def test_the_real_mmlu(mmlu_dir, tmp_path, download):
    download(mmlu_dir)
    splits = json.loads((tmp_path / "mmlu" / "report.json").read_text())["splits"]
    assert splits["test"] == {"rows": 14_042, "subjects": 57, "duplicates": 105}
    assert (splits["validation"]["rows"], splits["dev"]["rows"]) == (1_531, 285)
