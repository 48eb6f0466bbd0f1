"""The texts equal the card's byte for byte, whatever the rows contain and whatever the template does."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import format_mmlu
from int4_qat.data import mmlu_parquet
from int4_qat.tokenizer import tokenization
from programs import ROOT, run_script

AWKWARD = [
    ("plain", ["a", "b", "c", "d"]),
    ('commas, "quotes"\nnew lines\r\n and tabs\t', ["1,2", '"x"', "y\nz", "w"]),
    ("非 ASCII é Ω 🙂", ["é", "ß", "\u2003", "trailing \x1f"]),
    ("  leading and trailing  ", [" a ", "b ", "c\n", "d \n\u00a0\u2028"]),
    ("<end_of_turn> <bos> {{ jinja }} %s \\n", ["<bos>", "{%", "}}", "\\"]),
    ("", ["", "", "", " "]),
]


def rows_of(pairs):
    return [
        dict(question=question, subject="anatomy", choices=choices, answer=index % 4)
        for index, (question, choices) in enumerate(pairs)
    ]


def card_text(tokenizer, row):
    """Return the text that the card's code makes of a row, written independently of ours.

    The card's steps are format_into_conversation, the chat template and removeprefix.
    """
    letters = "ABCD"
    user = f"Choose the correct answer for the following question: {row['question']}\n\nChoices:\n"
    user += "\n".join(f"{letters[i]}. {row['choices'][i]}" for i in range(4))
    turns = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": f"The correct answer is {letters[row['answer']]}."},
    ]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False).removeprefix("<bos>")


def texts_of(tokenizer, rows, tmp_path):
    source, output = tmp_path / "rows.parquet", tmp_path / "texts.parquet"
    pq.write_table(pa.Table.from_pylist(rows, mmlu_parquet.SCHEMA), source)
    format_mmlu.format_split(source, tokenizer, output)
    return pq.read_table(output)


def test_awkward_rows(untrained, tmp_path):
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    rows = rows_of(AWKWARD)
    table = texts_of(tokenizer, rows, tmp_path)
    assert table["text"].to_pylist() == [card_text(tokenizer, row) for row in rows]
    assert table["subject"].to_pylist() == ["anatomy"] * len(rows)
    first = table["text"][0].as_py()
    assert first.startswith("<start_of_turn>user\nChoose the correct answer for the following question: plain\n\n")
    assert first.endswith("<end_of_turn>\n<start_of_turn>model\nThe correct answer is A.<end_of_turn>\n")


@pytest.mark.parametrize(
    "change",
    [
        ("| trim", ""),  # does not trim
        ("| trim", "| upper"),  # changes the messages, so rows are formatted one by one
        ("| trim", "| trim | truncate(40)"),  # likewise, but only long messages
    ],
)
def test_other_templates(untrained, tmp_path, change):
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    tokenizer.chat_template = tokenizer.chat_template.replace(*change)
    rows = rows_of(AWKWARD)
    assert texts_of(tokenizer, rows, tmp_path)["text"].to_pylist() == [card_text(tokenizer, row) for row in rows]


def test_real_rows(untrained, tmp_path, mmlu_dir):
    assert run_script("download_mmlu", "--source", mmlu_dir, "--output", tmp_path / "mmlu").returncode == 0
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    rows = pq.read_table(tmp_path / "mmlu" / "test.parquet").to_pylist()
    rows = [row for row in rows if any(mark in str(row) for mark in ('"', "\\n", ","))][::7]
    assert len(rows) > 1_000
    assert texts_of(tokenizer, rows, tmp_path)["text"].to_pylist() == [card_text(tokenizer, row) for row in rows]


def test_no_chat_template(untrained, tmp_path):
    tokenizer = tokenization.load_tokenizer(untrained / "model")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    pq.write_table(pa.Table.from_pylist(rows_of(AWKWARD), mmlu_parquet.SCHEMA), tmp_path / "rows.parquet")
    paths = ["--mmlu", tmp_path / "rows.parquet", "--tokenizer", tmp_path / "bare", "--output", tmp_path / "out"]
    result = run_script("format_mmlu", *paths)
    assert result.returncode == 1
    assert "expected a tokenizer with a chat template" in result.stderr
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_rows(untrained, tmp_path):
    def peak_bytes(copies):
        source, output = tmp_path / f"{copies}.parquet", tmp_path / f"{copies}_texts.parquet"
        batch = pa.Table.from_pylist(rows_of([("long " * 400, ["a", "b", "c", "d"])] * 4_000), mmlu_parquet.SCHEMA)
        with pq.ParquetWriter(source, mmlu_parquet.SCHEMA) as writer:
            for _ in range(copies):
                writer.write_table(batch)
        options = ["--mmlu", source, "--tokenizer", untrained / "model", "--output", output]
        program = [sys.executable, ROOT / "scripts" / "format_mmlu.py", *options]
        process = subprocess.Popen(list(map(str, program)))
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        assert pq.ParquetFile(output).metadata.num_rows == 4_000 * copies
        return usage.ru_maxrss * 1024

    # 160,000 more rows have 330 MB more of questions, and as much more of texts
    assert peak_bytes(copies=45) - peak_bytes(copies=5) < 100e6
