"""Test downloads from a Hub on loopback: which files are taken, and what a failure leaves for the next call."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from programs import run_script

COMMIT = "a" * 40
BESIDE = {  # files that are useless or harmful here
    "consolidated.safetensors": b"the same weights",
    "model.fp16.safetensors": b"the same weights",
    "pytorch_model.bin": b"a pickle",
    "pytorch_model.bin.index.json": b"{}",
    "hf_quant_config.json": b"{}",
    "modeling.py": b"code",
}


class Hub(ThreadingHTTPServer):
    """A server of one repository that refuses the files in `refused` and records the names of those it sent."""

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {path.name: path.read_bytes() for path in model.iterdir()} | BESIDE
        self.refused: set[str] = set()
        self.sent: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(self.path.rpartition("/")[2])

    def do_GET(self) -> None:
        files = self.server.files
        if "/tree/" in self.path:
            listed = [
                {"type": "file", "path": name, "oid": "0" * 40, "size": len(content)} for name, content in files.items()
            ]
            return self.send(200, json.dumps(listed).encode())
        if self.path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in files]
            return self.send(200, json.dumps({"id": "me/model", "sha": COMMIT, "siblings": siblings}).encode())
        return self.answer(self.path.rpartition("/")[2])

    def answer(self, name: str) -> None:
        if name in self.server.refused:
            return self.send(403, b"")
        if self.command == "GET":
            self.server.sent.append(name)
        return self.send(200, self.server.files[name])

    def send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def served(untrained) -> Iterator[Hub]:
    hub = Hub(untrained / "model")
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()


def download(hub, folder):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(folder / "home")}
    source = ["--source", f"hf://me/model@{COMMIT}", "--output", folder / "models" / "mine"]
    return run_script("download_model", *source, env=environment)


def test_weights_and_no_code_or_pickle_come_once(served, tmp_path):
    served.refused = {"model.safetensors"}
    result = download(served, tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: me/model@{COMMIT}: the Hub denied access (403: ")
    assert not (tmp_path / "models" / "mine").exists()
    served.refused = set()
    result = download(served, tmp_path)
    assert result.returncode == 0, result.stderr
    taken = {file.name: file.read_bytes() for file in (tmp_path / "models" / "mine").iterdir()}
    assert taken == {name: content for name, content in served.files.items() if name not in BESIDE}
    assert set(taken) <= set(served.sent)
    assert len(set(served.sent)) == len(served.sent)
    assert not any(name.endswith((".bin", ".py")) for name in served.sent)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]


def test_a_model_that_is_refused_is_not_fetched_twice(served, tmp_path):
    served.files["config.json"] = served.files["config.json"].replace(b'"gemma3"', b'"gemma9"')
    for _ in range(2):
        result = download(served, tmp_path)
        assert result.returncode == 1
        expected = f"error: hf://me/model@{COMMIT}/config.json: model_type: expected one that transformers"
        assert result.stderr.splitlines()[-1].startswith(expected)
    assert served.sent.count("model.safetensors") == 1
