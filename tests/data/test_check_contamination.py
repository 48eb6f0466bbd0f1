"""Test questions are found among the training questions, in each sense, those of several sets at once."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import check_contamination
from int4_qat.data import mmlu_parquet
from int4_qat.system.errors import InputError
from programs import run_in_process


def write(path, *rows):
    table = [dict(question=question, subject="anatomy", choices=list(choices), answer=0) for question, choices in rows]
    pq.write_table(pa.Table.from_pylist(table, mmlu_parquet.SCHEMA), path)
    return path


def test_counts_by_hand(tmp_path):
    train = write(
        tmp_path / "train.parquet",
        ("What is it?", "abcd"),
        ("what  is THIS", "abcd"),
        ("Which one?", "wxyz"),
    )
    test = write(
        tmp_path / "test.parquet",
        ("What is it?", "dcba"),  # the same, with the choices in another order
        ("What is this?", "abcd"),  # the same but for case and marks
        ("Which one?", "abcd"),  # the same question with other choices
        ("Which one?", "abcd"),  # twice, so it counts twice
        ("Something else", "abcd"),
    )
    assert check_contamination.count(train, {"mmlu": test}) == {
        "mmlu": {
            "questions": 5,
            "exact": 3,
            "normalized": 4,
            "exact_with_choices": 1,
            "normalized_with_choices": 2,
        }
    }


def test_each_set_counts_its_own(tmp_path, monkeypatch):
    train = write(tmp_path / "train.parquet", ("What is it?", "ab"), ("Which one?", "wxyz"))
    mmlu = write(tmp_path / "test.parquet", ("Which one?", "wxyz"), ("Something else", "abcd"))
    mine = write(tmp_path / "a=b.parquet", ("What is it?", "ba"), ("What is it", "ab"), ("Which one?", "ab"))
    options = ["--train", train, "--output", tmp_path / "counts.json"]
    tests = [f"mmlu={mmlu}", f"mine={mine}"]
    run_in_process(check_contamination, monkeypatch, *options, "--test", *tests)
    keys = ("questions", "exact", "normalized", "exact_with_choices", "normalized_with_choices")
    assert json.loads((tmp_path / "counts.json").read_text()) == {
        "mmlu": dict(zip(keys, (2, 1, 1, 1, 1), strict=True)),
        "mine": dict(zip(keys, (3, 2, 3, 1, 2), strict=True)),
    }
    run_in_process(check_contamination, monkeypatch, *options, "--test")
    assert json.loads((tmp_path / "counts.json").read_text()) == {}
    with pytest.raises(InputError, match=f"^--test: expected <name>=<path of a parquet>, found '{mmlu}'$"):
        run_in_process(check_contamination, monkeypatch, *options, "--test", mmlu)
