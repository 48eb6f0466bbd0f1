"""Test questions are found among the training questions, in each sense."""

import pyarrow as pa
import pyarrow.parquet as pq

import check_contamination
from int4_qat.data import mmlu_parquet


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
    assert check_contamination.count(train, test) == {
        "questions": 5,
        "exact": 3,
        "normalized": 4,
        "exact_with_choices": 1,
        "normalized_with_choices": 2,
    }
