"""Test data sets from a user's files: what is taken, and what is refused with one line before anything is scored."""

import codecs
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import download_dataset
from int4_qat.system import sources
from int4_qat.system.errors import InputError
from programs import run_in_process

ROWS = [{"question": "é?", "answer": 1}, {"question": "b", "answer": 2}]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "train.parquet")
    return folder


@pytest.fixture
def download(monkeypatch, source, tmp_path):
    """Return a function that runs the program on the source and returns the folder that it writes."""

    def run():
        run_in_process(
            download_dataset, monkeypatch, "--source", source, "--output", tmp_path / "resources" / "dataset"
        )
        return tmp_path / "resources" / "dataset"

    return run


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_snakemake_and_the_program_take_the_same_files(source, download):
    for name in ("._train.parquet", ".git/x.json", "__MACOSX/a.json", "train.parquet~", "~$a.csv", "data/test.jsonl"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}\n")
    folder = download()
    assert files_below(folder) == ["README.md", "data/test.jsonl", "train.parquet"]
    assert [str(source / name) for name in files_below(folder)] == sources.local_files(source)
    assert os.readlink(folder / "train.parquet") == str(source / "train.parquet")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test.json", json.dumps(ROWS)),
        ("test.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS) + "\n"),
        ("test.csv", "question,answer\r\né?,1\r\n\r\nb,2\r\n\r\n"),
        ("test.tsv", "question\tanswer\né?\t1\nb\t2\n"),
    ],
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["plain", "marked"])
def test_a_byte_order_mark_is_no_part_of_the_data(source, download, tmp_path, name, text, mark):
    content = mark + text.encode()
    (source / name).write_bytes(content)
    folder = download()
    assert (source / name).read_bytes() == content
    assert (folder / name).is_symlink() == (not mark)
    kind = {"jsonl": "json", "tsv": "csv"}.get(name.split(".")[1], name.split(".")[1])
    options = {"sep": "\t"} if name.endswith("tsv") else {}
    data = {"data_files": str(folder / name), "cache_dir": str(tmp_path / "cache"), "split": "train"}
    assert datasets.load_dataset(kind, **data, **options).to_list() == ROWS


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("test.json", json.dumps(ROWS).encode("utf-16"), "expected UTF-8, found UTF-16; save it as UTF-8"),
        ("test.csv", "question\né\n".encode("latin-1"), r", line 2: expected UTF-8, found b'\xe9'"),
        (
            "data/test.parquet",
            b"version https://git-lfs.github.com/spec/v1\n",
            ": expected a file, found a git-lfs pointer to it",
        ),
        ("TEST.CSV", b"question\nq\n", "expected a suffix in lower case, since `datasets` reads no other, found .CSV"),
    ],
)
def test_what_cannot_be_read_is_one_line(source, download, tmp_path, name, content, problem):
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        download()
    (line,) = str(error.value).splitlines()
    assert line.startswith(str(source / name))
    assert problem in line
    assert list((tmp_path / "resources").iterdir()) == []


def test_only_what_is_left_behind_is_no_data_set(source, download):
    (source / "train.parquet").rename(source / "train.parquet.bak")
    with pytest.raises(InputError, match=r"expected a data set \(\*.parquet, .*, found none"):
        download()


def test_no_folder(source, download):
    source.rename(source.with_name("elsewhere"))
    with pytest.raises(InputError, match="expected a folder with a data set, found none"):
        download()
