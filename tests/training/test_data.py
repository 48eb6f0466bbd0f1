"""Test which tokens a training gets from its texts: shares, windows, labels, and held-out rows."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from int4_qat.config import shares
from int4_qat.config.recipe import Recipe
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import pieces, tokenization
from int4_qat.training import data, packing
from programs import RECIPE

LENGTH = 32
SIZES = {"max_steps": 5, "train_batch_size": 8, "gradient_accumulation_steps": 2}  # 40 rows
MASKED = -100
Rows = Callable[..., data.Rows]


@pytest.fixture(scope="module")
def tokenizer(untrained: Path) -> PreTrainedTokenizerBase:
    return tokenization.load_tokenizer(untrained / "model")


@pytest.fixture(scope="module")
def general(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text of 100 windows, each a line of 30 words, and return its path."""
    path = tmp_path_factory.mktemp("general") / "general.txt"
    generator = random.Random(2)
    path.write_text("".join("".join(generator.choices(words, k=LENGTH - 2)) + "\n" for _ in range(100)))
    return path


@pytest.fixture
def packed(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Rows:
    """Return a function that makes the rows of a packed training from the weights and paths of texts, by name."""

    def make(weights: dict[str, float], paths: dict[str, Path], **changes: object) -> data.Rows:
        recipe = RECIPE | SIZES | {"packing": True, "max_seq_length": LENGTH, "texts": weights}
        return data.tokenize(paths, tokenizer, Recipe(**(recipe | changes)), tmp_path)

    return make


def windows_of(rows) -> list[tuple[int, ...]]:
    """Return the token ids of each row as a tuple, which can be counted."""
    return [tuple(row) for row in rows["input_ids"]]


def labelled(rows) -> list[bool]:
    """Return whether each row has a label; here only rows of questions have any."""
    return [any(label != MASKED for label in row) for row in rows["labels"]]


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ({"a": 1}, 40, {"a": 40}),
        ({"a": 1, "b": 1}, 5, {"a": 3, "b": 2}),
        ({"a": 0.7, "b": 0.2, "c": 0.1}, 40, {"a": 28, "b": 8, "c": 4}),
        ({"a": 1, "b": 1, "c": 1}, 40, {"a": 14, "b": 13, "c": 13}),
        ({"a": 5, "b": 2, "c": 1}, 10, {"a": 6, "b": 3, "c": 1}),  # from 6.25, 2.5 and 1.25
    ],
)
def test_shares_are_exact_by_the_largest_remainders(weights, total, expected):
    assert shares.of_texts(weights, total) == expected


def test_any_stretch_of_rows_has_the_shares_of_the_whole():
    counts = [28, 8, 4]
    order = packing.interleaved(counts).tolist()
    assert sorted(order) == list(range(40))
    kinds = [0 if row < 28 else 1 if row < 36 else 2 for row in order]
    for start in range(40):
        for end in range(start + 1, 41):
            for kind, count in enumerate(counts):
                assert abs(kinds[start:end].count(kind) - (end - start) * count / 40) < 2


def test_rows_are_as_many_as_the_steps_take_in_the_shares_of_the_texts(packed, texts, general):
    rows = packed({"questions": 1, "general": 3}, {"questions": texts, "general": general}, max_seq_length=64)
    assert rows.held_out is None
    assert {len(row) for row in rows.train["input_ids"]} == {len(row) for row in rows.train["labels"]} == {64}
    of_questions = labelled(rows.train)  # each window of 64 has an answer in it
    assert (len(of_questions), sum(of_questions)) == (40, 10)
    assert all(sum(of_questions[start : start + 4]) == 1 for start in range(0, 40, 4))


def test_each_row_begins_with_the_only_bos(packed, texts, general, tokenizer):
    rows = packed({"questions": 1, "general": 1}, {"questions": texts, "general": general}).train
    bos = tokenizer.bos_token_id
    assert all(row[0] == bos and row.count(bos) == 1 for row in rows["input_ids"])
    assert all(row[0] == MASKED for row in rows["labels"])


def test_a_model_whose_template_writes_no_bos_has_none_in_its_windows(spoiled, general, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "BYTES", 1 << 20)  # one piece, in its own order
    template = spoiled / "chat_template.jinja"
    template.write_text(template.read_text().replace("bos_token", "''"))
    tokenizer = tokenization.load_tokenizer(spoiled)
    recipe = RECIPE | SIZES | {"packing": True, "max_seq_length": LENGTH, "texts": {"general": 1}}
    rows = data.tokenize({"general": general}, tokenizer, Recipe(**recipe), tmp_path).train
    whole = tokenizer(general.read_text(), add_special_tokens=False)["input_ids"]
    assert set(windows_of(rows)) <= {tuple(whole[at : at + LENGTH]) for at in range(0, len(whole), LENGTH)}


def test_windows_of_a_general_text_are_its_own_and_teach_no_answer(packed, general, tokenizer, monkeypatch):
    monkeypatch.setattr(pieces, "BYTES", 1 << 20)  # one piece, in its own order
    rows = packed({"general": 1}, {"general": general}).train
    whole = tokenizer(general.read_text(), add_special_tokens=False)["input_ids"]
    starts = {tuple(whole[at : at + LENGTH - 1]) for at in range(0, len(whole), LENGTH - 1)}
    assert {window[1:] for window in windows_of(rows)} <= starts
    assert len(set(windows_of(rows))) == 40
    assert set(map(tuple, rows["labels"])) == {(MASKED,) * LENGTH}


def test_labels_of_packed_questions_are_those_of_each_question(packed, texts, tokenizer):
    """The expected labels come from the questions in their drawn order, each tokenized in two separate halves."""
    rows = packed({"questions": 1}, {"questions": texts}, max_seq_length=33).train
    known = {}
    for text in pq.read_table(texts)["text"].to_pylist():
        head, answer = (part.removeprefix("<bos>") for part in text.split("<start_of_turn>model\n"))
        asked = tokenizer(head + "<start_of_turn>model\n", add_special_tokens=False)["input_ids"]
        answered = tokenizer(answer, add_special_tokens=False)["input_ids"]
        known[tuple(asked + answered)] = [MASKED] * len(asked) + answered
    drawn = pieces.tokens(texts, tokenizer, random.Random(f"{RECIPE['seed']} questions"))
    running = [pair for tokens in drawn for pair in zip(tokens, known[tuple(tokens)], strict=True)]
    expected = [running[start : start + 32] for start in range(0, len(running) - 31, 32)]
    found = [list(zip(*pair, strict=True)) for pair in zip(rows["input_ids"], rows["labels"], strict=True)]
    assert all(window[1:] in expected for window in found)
    assert any(label != MASKED for window in found for _, label in window)


def test_the_same_seed_makes_the_same_rows_and_another_one_others(packed, texts, general):
    weights, paths = {"questions": 1, "general": 1}, {"general": general, "questions": texts}
    rows = packed(weights, paths, eval_steps=1)
    again = packed(dict(reversed(weights.items())), dict(reversed(paths.items())), eval_steps=1)
    for side in (0, 1):
        assert rows[side].to_dict() == again[side].to_dict()
    other = packed(weights, paths, eval_steps=1, seed=1)
    assert sorted(windows_of(other.train)) != sorted(windows_of(rows.train))


@pytest.mark.parametrize("max_steps", [5, 40])  # part of the text, and three passes over it
def test_what_is_held_out_is_never_trained_on(packed, texts, general, max_steps):
    weights, paths = {"questions": 1, "general": 6}, {"questions": texts, "general": general}
    rows = packed(weights, paths, eval_steps=1, max_steps=max_steps)
    held_out = windows_of(rows.held_out)
    assert len(rows.train) == max_steps * 8
    assert len(set(held_out)) == len(held_out) == 8
    assert sum(labelled(rows.held_out)) <= 2  # 1 + 6 / 7 are of questions, and may lack a label
    assert set(held_out).isdisjoint(windows_of(rows.train))


def test_each_text_has_a_window_held_out():
    assert packing.held_out_shares({"a": 99, "b": 1}) == {"a": 7, "b": 1}
    assert packing.held_out_shares({"a": 1, "b": 1}) == {"a": 4, "b": 4}
    assert packing.held_out_shares(dict.fromkeys("abcdefghi", 1)) == dict.fromkeys("abcdefghi", 1)


def test_a_text_that_is_used_up_is_repeated_in_another_order(packed, general, capsys):
    rows = packed({"general": 1}, {"general": general}, max_steps=30).train  # 240 rows of 100 windows
    windows = windows_of(rows)
    assert set(Counter(windows[:100]).values()) == set(Counter(windows[100:200]).values()) == {1}
    assert set(windows[:100]) == set(windows[100:200]) > set(windows[200:])
    assert windows[:100] != windows[100:200]
    assert capsys.readouterr().out == "general: each of 100 windows is trained on 2.4 times\n"


def test_no_more_of_a_large_text_is_tokenized_than_is_needed(packed, words, tokenizer, tmp_path, monkeypatch):
    line = "".join(words[:200]) + "\n"
    path = tmp_path / "large.txt"
    path.write_text(line * (4 * 1024 * 1024 // len(line)))
    given = []
    call = type(tokenizer).__call__

    def count(self, text, *arguments, **options):
        given.extend([text] if isinstance(text, str) else text)
        return call(self, text, *arguments, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", count)
    assert len(packed({"large": 1}, {"large": path}).train) == 40
    assert sum(map(len, given)) < 3 * pieces.BYTES


def test_pieces_are_all_of_a_file_in_another_order(words, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "BYTES", 100)
    lines = [f"{word} é\n" for word in words[:300]] + ["no end"]
    path = tmp_path / "text.txt"
    path.write_text("".join(lines))
    spans = pieces.spans_of(path)
    assert [span.line for span in spans] == sorted({span.line for span in spans})
    found = [text for texts in pieces.of_lines(path, tokenizer, random.Random(0)) for text in texts]
    assert found != sorted(found, key=path.read_text().index)
    assert sorted(line for text in found for line in text.splitlines(keepends=True)) == sorted(lines)
    for span in spans:
        text = path.read_bytes()[span.start : span.start + span.size].decode()
        assert text.splitlines(keepends=True) == lines[span.line - 1 :][: len(text.splitlines())]


def conversations(path: Path, *found: list[tuple[str, str]]) -> Path:
    """Write a file of conversations, given as pairs of role and content, and return its path."""
    lines = [[{"role": role, "content": content} for role, content in messages] for messages in found]
    path.write_text("".join(json.dumps(messages) + "\n" for messages in lines))
    return path


def test_conversations_are_rendered_by_the_models_template(packed, tokenizer, words, tmp_path):
    generator = random.Random(3)
    turns = [("user", "".join(generator.choices(words, k=9))), ("assistant", "".join(generator.choices(words, k=30)))]
    path = conversations(tmp_path / "chats.jsonl", [*turns, ("user", "And\nwhy? é")], *([turns] * 40))
    rows = packed({"chats": 1}, {"chats": path}, max_steps=1).train
    running = []
    for line in path.read_text().splitlines():
        text = tokenizer.apply_chat_template(json.loads(line), tokenize=False).removeprefix("<bos>")
        running += tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = {tuple(running[at : at + LENGTH - 1]) for at in range(0, len(running), LENGTH - 1)}
    assert {window[1:] for window in windows_of(rows)} <= expected
    assert set(map(tuple, rows["labels"])) == {(MASKED,) * LENGTH}


def test_a_conversation_that_the_template_refuses_is_one_line(packed, tokenizer, tmp_path, monkeypatch):
    refusal = "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}"
    monkeypatch.setattr(tokenizer, "chat_template", refusal + tokenizer.chat_template)
    monkeypatch.setattr(pieces, "BYTES", 1)
    path = conversations(tmp_path / "chats.jsonl", [("user", "Why?")], [("system", "Be brief."), ("user", "Why?")])
    with pytest.raises(InputError, match=r"chats\.jsonl, line 2: the chat template fails on a conversation \(no syst"):
        packed({"chats": 1}, {"chats": path})


def test_a_text_that_is_too_short_is_one_line(packed, words, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("".join(words[:31]))
    assert len(packed({"short": 1}, {"short": path}).train) == 40
    with pytest.raises(InputError, match=r"short\.txt: expected 9 windows of 32 tokens or more, found 1$"):
        packed({"short": 1}, {"short": path}, eval_steps=1)
    path.write_text("".join(words[:30]))
    with pytest.raises(InputError, match=r"short\.txt: expected 1 windows of 32 tokens or more, found 0$"):
        packed({"short": 1}, {"short": path})


def test_other_texts_than_the_recipes_are_one_line(packed, texts, general):
    with pytest.raises(InputError, match=r"^--texts: expected questions, found general, questions$"):
        packed({"questions": 1}, {"questions": texts, "general": general})


@pytest.mark.parametrize(("count", "kept"), [(200, 20), (1000, 64), (10, 1)])
def test_the_last_questions_are_held_out_without_packing(texts, tokenizer, tmp_path, count, kept):
    rows = (pq.read_table(texts)["text"].to_pylist() * 5)[:count]
    pq.write_table(pa.table({"text": rows}), tmp_path / "train.parquet")
    paths = {"questions": tmp_path / "train.parquet"}
    whole = data.tokenize(paths, tokenizer, Recipe(**RECIPE), tmp_path)
    assert whole.held_out is None
    found = data.tokenize(paths, tokenizer, Recipe(**(RECIPE | {"eval_steps": 2})), tmp_path)
    assert (len(found.train), len(found.held_out)) == (count - kept, kept)
    assert [*found.train["input_ids"], *found.held_out["input_ids"]] == [*whole.train["input_ids"]]


def test_too_few_questions_to_hold_any_out_are_one_line(texts, tokenizer, tmp_path):
    pq.write_table(pq.read_table(texts).slice(0, 9), tmp_path / "train.parquet")
    recipe = Recipe(**(RECIPE | {"eval_steps": 2}))
    with pytest.raises(InputError, match=r"train\.parquet: expected 10 questions or more, .*, found 9$"):
        data.tokenize({"questions": tmp_path / "train.parquet"}, tokenizer, recipe, tmp_path)
