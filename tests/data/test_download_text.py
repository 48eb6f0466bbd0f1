"""Test texts from a user's files and from the Hub: what is taken, and what is refused with one line."""

import codecs
import json
import random
import threading
from http.server import ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import download_text
import loopback
import make_standin
from int4_qat.data import mmlu
from int4_qat.standin import standin
from int4_qat.system.errors import InputError
from programs import LFS_POINTER, ROOT, run_in_process, run_script

# Rows as in the Hub's wikitext-2-raw-v1: each is a line, with empty rows between them.
ROWS = [
    "",
    " = Robert Boulter = \n",
    "",
    " Robert Boulter is an English film and theatre actor . é \n",
    "",
]
RAW = "".join(row or "\n" for row in ROWS)
COMMIT = "b" * 40


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def download(monkeypatch, source, tmp_path):
    """Return a function that runs the program on the source and returns the bytes of the text that it writes."""

    def run(*options):
        output = tmp_path / "resources" / "text.txt"
        run_in_process(download_text, monkeypatch, "--source", source, *options, "--output", output)
        return output.read_bytes()

    return run


def write_table(rows, path, column="text"):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({column: rows}), path)


def test_rows_make_the_raw_text(source, download):
    """Some mirrors of wikitext keep the newline of each row and some drop it; the text is the same."""
    write_table(ROWS, source / "test-00000-of-00001.parquet")
    assert download() == RAW.encode()
    write_table([row.removesuffix("\n") for row in ROWS], source / "test-00000-of-00001.parquet")
    assert download() == RAW.encode()


def test_texts_are_joined_as_they_are_in_the_order_of_their_names(source, download):
    (source / "b.txt").write_bytes("two\r\n\r\nthree\u2028\n".encode())
    (source / "a.txt").write_bytes(codecs.BOM_UTF8 + b"one\r\n")
    write_table(["four"], source / "c" / "d.parquet")
    for left in (".hidden.txt", "a.txt~", "README.md"):
        (source / left).write_text("nothing")
    assert download() == "one\r\ntwo\r\n\r\nthree\u2028\nfour\n".encode()


def test_a_file_without_a_last_newline_ends_a_line(source, download):
    (source / "a.txt").write_text("the end")
    (source / "b.txt").write_text("Start here")
    assert download() == b"the end\nStart here"


def test_json_lines_are_rows(source, download):
    """A byte order mark, blank lines, Windows line endings and line separators inside texts are all accepted."""
    rows = [{"body": "one\ntwo", "id": 1}, {"body": "é\u2028three"}, {"body": ""}, {"body": "four\n"}]
    lines = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(rows)]
    lines.append('{"body":\r"five"}')
    (source / "a.jsonl").write_bytes(codecs.BOM_UTF8 + "\r\n\r\n".join(lines).encode())
    assert download("--column", "body") == "one\ntwo\né\u2028three\n\nfour\nfive\n".encode()


def test_only_files_that_match_count(source, download):
    write_table(["this"], source / "raw" / "test-0.parquet", column="body")
    write_table(["not this"], source / "raw" / "train-0.parquet", column="body")
    write_table(["not this"], source / "test-0.parquet", column="body")
    assert download("--files", "raw/test-*.parquet", "--column", "body") == b"this\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "problem"),
    [
        ("a.txt", "é".encode("latin-1"), [], r"/a.txt, line 1: expected UTF-8, found b'\xe9'"),
        ("a.txt", "one".encode("utf-16"), [], "/a.txt: expected UTF-8, found UTF-16; save it as UTF-8"),
        ("a.txt", b" \n\n", [], ": expected text in *.txt and *.parquet and *.jsonl, found none"),
        ("a.txt", LFS_POINTER.encode(), [], "/a.txt: expected a file, found a git-lfs pointer to it; run `git lfs"),
        ("a.parquet", LFS_POINTER.encode(), [], "/a.parquet: expected a file, found a git-lfs pointer to it; run"),
        ("a.parquet", b"PAR1", [], "/a.parquet: expected a complete parquet file ("),
        ("a.csv", b"one", ["--files", "*.csv"], "/a.csv: expected .txt, .parquet or .jsonl, found .csv"),
        ("a.csv", b"one", [], ": expected files that match *.txt or *.parquet or *.jsonl, found none"),
        ("a.txt", b"one", ["--files", "b*.txt"], ": expected files that match b*.txt, found none"),
        ("a.parquet", [], [], ": expected text in *.txt and *.parquet and *.jsonl, found none"),
        ("a.parquet", ["one", None], [], "/a.parquet, row 2: text: expected a text, found None"),
        ("a.parquet", [1], [], "/a.parquet, row 1: text: expected a text, found 1"),
        ("a.parquet", ["one"], ["--column", "body"], "/a.parquet: expected the columns body, found no body"),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text": "two"\n',
            [],
            "/a.jsonl, line 2: expected JSON (Expecting ',' delimiter",
        ),
        ("a.jsonl", b'{"text": "one"}\n\n["two"]\n', [], "/a.jsonl, line 3: expected a JSON object, found '[\"two\"]'"),
        ("a.jsonl", b'{"text": "one"} {"text": "two"}', [], "/a.jsonl, line 1: expected JSON (Extra data"),
        ("a.jsonl", b"[" * 100_000, [], "/a.jsonl, line 1: expected JSON ("),
        ("a.jsonl", b'{"body": "one", "id": 1}', [], "/a.jsonl, line 1: expected the key text, found body, id"),
        ("a.jsonl", b"{}", [], "/a.jsonl, line 1: expected the key text, found none"),
        ("a.jsonl", b'{"text": null}', [], "/a.jsonl, line 1: text: expected a text, found None"),
        ("a.jsonl", b'{"text": ["one"]}', [], "/a.jsonl, line 1: text: expected a text, found ['one']"),
        (
            "a.jsonl",
            rb'{"text": "one \ud800"}',
            [],
            r"/a.jsonl, line 1: text: expected valid Unicode, found '\ud800'",
        ),
        ("a.jsonl", '{}\n{"text": "é"}'.encode("latin-1"), [], r"/a.jsonl, line 2: expected UTF-8, found b'\xe9'"),
        ("a.jsonl", LFS_POINTER.encode(), [], "/a.jsonl: expected a file, found a git-lfs pointer to it; run `git"),
        ("a.jsonl", b"", [], ": expected text in *.txt and *.parquet and *.jsonl, found none"),
    ],
)
def test_what_is_no_text_is_one_line(source, download, tmp_path, name, content, options, problem):
    if isinstance(content, bytes):
        (source / name).write_bytes(content)
    else:
        write_table(content, source / name)
    with pytest.raises(InputError) as caught:
        download(*options)
    assert str(caught.value).startswith(f"{source}{problem}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "resources").exists()


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?\né\u2028"}]


def test_conversations_are_lines_of_messages(source, download):
    """Conversations come from parquet and from JSON lines; keys other than role and content are dropped."""
    write_table([CHAT, CHAT[1:]], source / "a.parquet", column="talk")
    more = [message | {"id": 1} for message in CHAT]
    (source / "b.jsonl").write_text(json.dumps({"talk": more, "id": 2}) + "\n\n")
    lines = download("--messages", "talk").decode().removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == [CHAT, CHAT[1:], CHAT]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Why?", "expected a list of messages, found 'Why?'"),
        ([], "expected a list of messages, found []"),
        (["Why?"], "message 1: expected role and content, both texts, found 'Why?'"),
        ([CHAT[0], {"role": "user"}], "message 2: expected role and content, both texts, found {'role': 'user'}"),
        ([{"role": "user", "content": None}], "message 1: expected role and content, both texts, found {'role': 'us"),
        ([{"role": "user", "content": "\ud800"}], r"expected valid Unicode, found '\ud800'"),
    ],
)
def test_what_is_no_conversation_is_one_line(source, download, tmp_path, value, found):
    rows = [{"talk": CHAT}, {"talk": value}]
    (source / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as caught:
        download("--messages", "talk")
    assert str(caught.value).startswith(f"{source}/a.jsonl, line 2: talk: {found}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "resources").exists()


def test_a_text_file_holds_no_conversations(source, download):
    (source / "a.txt").write_text("Why?")
    with pytest.raises(InputError, match=r"/a\.txt: expected \.parquet or \.jsonl, found \.txt$"):
        download("--messages", "talk")


def test_no_folder_is_one_line(source, download):
    source.rmdir()
    with pytest.raises(InputError) as caught:
        download()
    assert str(caught.value) == f"{source}: expected a folder with texts, found none"


class Hub(loopback.Handler):
    """A handler for a Hub with one repository, which holds one table."""

    table = b""

    def do_GET(self) -> None:
        names = {"raw/test-0.parquet": self.table, "README.md": b"# a card"}
        headers, content = {}, b""
        if "/tree/" in self.path:
            files = [{"type": "file", "path": name, "oid": "0" * 40, "size": len(names[name])} for name in names]
            content = json.dumps(files).encode()
        elif "/resolve/" in self.path:
            content = names[self.path.partition(f"/resolve/{COMMIT}/")[2]]
            headers = {"X-Repo-Commit": COMMIT, "ETag": '"etag"'}
        self.reply(200 if content else 404, headers, content)

    do_HEAD = do_GET


@pytest.fixture
def hub(source, monkeypatch):
    """Serve such a Hub and yield its source; the environment has its address, which a new process reads on import."""
    write_table(ROWS, source / "table.parquet")
    monkeypatch.setattr(Hub, "table", (source / "table.parquet").read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(source / "home"))
    yield f"hf://datasets/me/wikitext@{COMMIT}"
    server.shutdown()


def test_a_text_comes_from_the_hub(hub, tmp_path):
    words = ["--source", hub, "--files", "raw/test-*.parquet", "--column", "text", "--output", tmp_path / "text.txt"]
    result = run_script("download_text", *words, env=None)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "text.txt").read_bytes() == RAW.encode()


def test_a_pattern_that_fits_nothing_on_the_hub_is_one_line(hub, tmp_path):
    words = ["--source", hub, "--files", "raw/validation-*.parquet", "--output", tmp_path / "text.txt"]
    result = run_script("download_text", *words, env=None)
    expected = f"error: {hub}: expected files that match raw/validation-*.parquet, found none"
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, expected)
    assert not (tmp_path / "text.txt").exists()


def test_the_hub_is_asked_for_a_commit_alone(tmp_path):
    words = ["--source", "hf://datasets/Salesforce/wikitext", "--output", tmp_path / "text.txt"]
    result = run_script("download_text", *words, cwd=ROOT)
    assert result.returncode == 1
    assert "expected hf://[datasets/]<owner>/<name>@<40-digit commit>" in result.stderr


def test_the_standins_papers_are_of_questions_that_stand_in_no_split(download, source):
    """Drawing the papers' questions also does not change the splits, on which the model and the data set depend."""
    facts = standin.invent_families(make_standin.FAMILIES, make_standin.WORDS, random.Random(0))
    sizes = {"auxiliary_train": 200, "dev": 57, "validation": 57, "test": 114}
    questions = standin.ask(facts, mmlu.SUBJECTS, sizes | make_standin.PAPERS, 1)
    papers = {name: questions.pop(name) for name in make_standin.PAPERS}
    assert questions == standin.ask(facts, mmlu.SUBJECTS, sizes, 1)
    known = {(question.family, question.choices) for split in questions.values() for question in split}
    asked = papers["held_out"]
    for one, others in (("held_out", "train"), ("train", "held_out")):
        apart = known | {(question.family, question.choices) for question in papers[others]}
        assert not apart & {(question.family, question.choices) for question in papers[one]}
    make_standin.write_texts(papers, [], source / "text", random.Random(0))
    text = download("--files", "text/questions.txt").decode()
    for question in asked:
        choices = [f"{letter}. {choice}" for letter, choice in zip("ABCD", question.choices, strict=True)]
        assert "\n".join([question.text, *choices, f"Answer: {'ABCD'[question.answer]}\n\n"]) in text
    tokens = make_standin.make_tokenizer({"all": [*asked, *questions["test"]]})(text)["input_ids"]
    assert 7_000 < len(tokens) < 9_000
