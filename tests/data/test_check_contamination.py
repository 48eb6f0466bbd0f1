"""Test questions of several sets are found among the training questions, by each of the measures."""

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
        "mmlu": dict(zip(keys, (2, 1, 1, 1, 1), strict=True)) | {"in_texts": {}},
        "mine": dict(zip(keys, (3, 2, 3, 1, 2), strict=True)) | {"in_texts": {}},
    }
    run_in_process(check_contamination, monkeypatch, *options, "--test")
    assert json.loads((tmp_path / "counts.json").read_text()) == {}
    with pytest.raises(InputError, match=f"^--test: expected <name>=<path of a parquet>, found '{mmlu}'$"):
        run_in_process(check_contamination, monkeypatch, *options, "--test", mmlu)


NUMBERS = [f"n{number}" for number in range(14)]


def test_a_question_stands_in_a_text_by_13_of_its_words_or_all(tmp_path, monkeypatch):
    test = write(
        tmp_path / "test.parquet",
        (" ".join(NUMBERS), "abcd"),  # 14 words
        (" ".join(NUMBERS[2:]), "abcd"),  # 12
        (" ".join(NUMBERS[::-1][:8]), "abcd"),  # 8
        ("Which is it?", ["the first", "the second", "the third", "the last"]),  # too short to tell, with choices 11
    )
    texts = {
        "one_word_less": " ".join(NUMBERS[1:13]),
        "thirteen": f"He wrote: {'. '.join(NUMBERS[1:]).upper()}!",
        "eight": " ".join(NUMBERS[::-1]),
        "short": "Which is it? I do not know.",
        "short_with_choices": "Which is it?\n- the first\n- the second\n- the third\n- the last\n",
        "nothing": "?!\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    options = ["--train", write(tmp_path / "train.parquet"), "--test", f"mmlu={test}", "--texts"]
    options += [f"{name}={tmp_path / name}.txt" for name in texts]
    run_in_process(check_contamination, monkeypatch, *options, "--output", tmp_path / "counts.json")
    found = json.loads((tmp_path / "counts.json").read_text())["mmlu"]["in_texts"]
    assert found == {
        "one_word_less": 0,
        "thirteen": 2,
        "eight": 1,
        "short": 0,
        "short_with_choices": 1,
        "nothing": 0,
    }
