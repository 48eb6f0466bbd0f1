"""A model from a Hub on loopback: what is taken, and what a failure leaves for the next call."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch
import torch

from programs import run_script

COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": safetensors.torch.save({"weight": torch.ones(4, 4, dtype=torch.bfloat16)}),
    "consolidated.safetensors": b"the same weights",
    "pytorch_model.bin": b"a pickle",
    "modeling.py": b"code",
}


class Hub(ThreadingHTTPServer):
    """Serves one repository; refuses the files in `refused`, and keeps the names of those that were sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refused: set[str] = set()
        self.sent: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(self.path.rpartition("/")[2])

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            listed = [{"type": "file", "path": name, "oid": "0" * 40, "size": len(FILES[name])} for name in FILES]
            return self.send(200, json.dumps(listed).encode())
        if self.path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in FILES]
            return self.send(200, json.dumps({"id": "me/model", "sha": COMMIT, "siblings": siblings}).encode())
        return self.answer(self.path.rpartition("/")[2])

    def answer(self, name: str) -> None:
        if name in self.server.refused:
            return self.send(403, b"")
        if self.command == "GET":
            self.server.sent.append(name)
        return self.send(200, FILES[name])

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
def served() -> Iterator[Hub]:
    hub = Hub()
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
    assert result.stderr.splitlines()[-1].startswith(f"error: me/model@{COMMIT}: the Hub forbids it (403: ")
    assert not (tmp_path / "models" / "mine").exists()
    served.refused = set()
    result = download(served, tmp_path)
    assert result.returncode == 0, result.stderr
    taken = {file.name: file.read_bytes() for file in (tmp_path / "models" / "mine").iterdir()}
    assert taken == {name: FILES[name] for name in ("config.json", "tokenizer_config.json", "model.safetensors")}
    assert sorted(served.sent) == sorted(taken)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (
            safetensors.torch.save({"weight": torch.ones(4, 4), "norm": torch.ones(4, dtype=torch.bfloat16)}),
            "found F32",
        ),
        (safetensors.torch.save({}), "found none"),
        (FILES["model.safetensors"][:-1], "model.safetensors: the weights cannot be read"),
    ],
    ids=["fp32", "none", "cut short"],
)
def test_weights_that_are_not_bfloat16_or_not_whole_are_refused(tmp_path, weights, expected):
    source = tmp_path / "source"
    source.mkdir()
    for name, content in (FILES | {"model.safetensors": weights}).items():
        (source / name).write_bytes(content)
    result = run_script("download_model", "--source", source, "--output", tmp_path / "mine")
    assert result.returncode == 1
    assert expected in result.stderr.splitlines()[-1]
    assert not (tmp_path / "mine").exists()
