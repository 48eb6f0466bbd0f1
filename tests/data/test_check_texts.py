"""Held-out text is found in the texts that a run trains or calibrates on, and more than 1% of it stops the run."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import check_texts
from int4_qat.data import mmlu_parquet, shared_words
from int4_qat.system.errors import InputError
from programs import run_in_process

WORDS = [f"w{number}" for number in range(400)]


def shared(held_out, text):
    """Return how many runs of 13 words a held-out text has, and how many occur in another text, by plain search."""
    words = [" ".join(filter(str.isalnum, word)).replace(" ", "") for word in held_out.lower().split()]
    within = f" {' '.join(''.join(filter(str.isalnum, word)) for word in text.lower().split())} "
    runs = {" ".join(words[start : start + 13]) for start in range(len(words) - 12)}
    return len(runs), sum(f" {run} " in within for run in runs)


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Return a function that runs the program on a held-out text and other texts, and returns its counts.

    The other texts are training texts unless `options` says otherwise.
    """

    def run(held_out, options=("--training",), **texts):
        (tmp_path / "held_out.txt").write_text(held_out)
        for name, text in texts.items():
            (tmp_path / f"{name}.txt").write_text(text)
        words = ["--held-out", f"held_out={tmp_path / 'held_out.txt'}"]
        for option in ("--training", "--calibration"):
            words += [option, *(f"{name}={tmp_path / name}.txt" for name in texts if option in options)]
        run_in_process(check_texts, monkeypatch, *words, "--output", tmp_path / "counts.json")
        return json.loads((tmp_path / "counts.json").read_text())["held_out"]

    return run


def test_counts_are_those_of_a_plain_search(check, monkeypatch):
    """The counts do not depend on where the text is cut into blocks, nor on case and punctuation."""
    monkeypatch.setattr(shared_words, "BLOCK", 100)
    generator = random.Random(0)
    held_out = " ".join(generator.choices(WORDS, k=5_000))
    words = generator.choices(WORDS, k=3_000)
    words[1_000:1_040] = held_out.split()[200:240]  # 28 runs
    words[2_000:2_012] = held_out.split()[900:912]  # one word short of a run
    text = "".join(word.upper() + generator.choice([" ", ", ", "\n", "\n\n"]) for word in words)
    runs, standing = shared(held_out, text)
    assert standing == 28
    assert check(held_out, text=text, none="w1 w2") == {"runs": runs, "in_texts": {"text": standing, "none": 0}}


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--training"], "finetune.texts"),
        (["--calibration"], "calibration.texts"),
        (["--training", "--calibration"], "finetune.texts and calibration.texts"),
    ],
)
def test_more_than_a_little_of_a_held_out_text_is_one_line(check, tmp_path, options, keys):
    held_out = " ".join(WORDS)  # 388 runs: three are less than 1%, four are more
    assert check(held_out, text=" ".join(WORDS[100:115]))["in_texts"] == {"text": 3}
    (tmp_path / "counts.json").unlink()
    with pytest.raises(InputError) as caught:
        check(held_out, options, other="nothing of it", text=" ".join(WORDS[100:116]))
    assert str(caught.value) == (
        f"{keys}: expected at most 1% of the held-out text 'held_out' in 'text', by runs of 13 words, found 1.0%"
    )
    assert not (tmp_path / "counts.json").exists()


def test_a_short_text_counts_as_a_whole_and_one_without_words_is_nowhere(check):
    with pytest.raises(InputError, match=r"found 100\.0%$"):
        check("Only three words", text="There are: only three words!")
    assert check("?!", text="?!") == {"runs": 0, "in_texts": {"text": 0}}


def test_training_questions_count_as_training_shows_them(tmp_path, monkeypatch):
    rows = [{"question": "Which is it?", "subject": "", "choices": ["this", "that", "both", "none"], "answer": 2}]
    pq.write_table(pa.Table.from_pylist(rows, mmlu_parquet.SCHEMA), tmp_path / "train.parquet")
    held_out = "which is it choices a this b that c both d none the correct answer is c"
    (tmp_path / "held_out.txt").write_text(f"{held_out} {' '.join(WORDS)} {' '.join(WORDS[::-1])}")
    options = ["--held-out", f"held_out={tmp_path / 'held_out.txt'}"]
    options += ["--training", f"questions={tmp_path / 'train.parquet'}", "--calibration"]
    run_in_process(check_texts, monkeypatch, *options, "--output", tmp_path / "counts.json")
    found = json.loads((tmp_path / "counts.json").read_text())
    assert found["held_out"]["in_texts"] == {"questions": len(held_out.split()) - 12}


def test_a_conversation_counts_by_what_is_said_in_it(tmp_path, monkeypatch):
    """A run of words may continue from one message to the next; roles are not words of the text."""
    (tmp_path / "held_out.txt").write_text(" ".join(WORDS * 10))
    said = [" ".join(WORDS[100:110]), " ".join(WORDS[110:115]) + "\nnothing"]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
    (tmp_path / "chats.jsonl").write_text(json.dumps(messages) + "\n")
    options = ["--held-out", f"held_out={tmp_path / 'held_out.txt'}", "--calibration"]
    options += ["--training", f"chats={tmp_path / 'chats.jsonl'}", "--output", tmp_path / "counts.json"]
    run_in_process(check_texts, monkeypatch, *options)
    assert json.loads((tmp_path / "counts.json").read_text())["held_out"]["in_texts"] == {"chats": 3}


def test_a_name_is_needed(tmp_path, monkeypatch):
    options = ["--training", "--calibration", "--output", tmp_path / "counts.json"]
    with pytest.raises(InputError, match=r"^--held-out: expected <name>=<path of a text>, found 'text\.txt'$"):
        run_in_process(check_texts, monkeypatch, "--held-out", "text.txt", *options)
