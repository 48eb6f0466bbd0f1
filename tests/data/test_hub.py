"""Whatever prevents a download from the Hub is reported in one accurate line, without the token."""

import json
import os
import resource
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest
import yaml

import loopback
from programs import ROOT, run_script
from workflows import demo, write_config

COMMIT = "a" * 40
TOKEN = "hf_secretSecretSecret"
LISTED = [{"type": "file", "path": "config.json", "oid": "0" * 40, "size": 10_000}]
TREE = (200, {}, json.dumps(LISTED).encode())
BIG = (200, {"X-Repo-Commit": COMMIT, "ETag": '"etag"'}, b" " * 10_000)


class Hub(ThreadingHTTPServer):
    """A Hub whose answers for the file list and for a file are set by tests: status, headers, content.

    It closes the connection without an answer if that is None.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tree = self.file = TREE
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(loopback.Handler):
    server: Hub

    def do_GET(self) -> None:
        answer = self.server.tree if "/tree/" in self.path else self.server.file
        if "/resolve/" not in self.path and "/tree/" not in self.path:
            answer = (404, {}, b"")  # the client's other requests
        if answer is None:
            return
        self.reply(*answer)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()


def download(address, folder, program="download_model", source=f"hf://me/model@{COMMIT}", options=(), **variables):
    """Return the last line of a download that fails, run without the user's HF_ and TRANSFORMERS_ variables."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    ours |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home")} | variables
    result = run_script(program, "--source", source, "--output", folder / "output", *options, env=ours)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    assert not (folder / "output").exists()
    return result.stderr.splitlines()[-1]


def says(message, **headers):
    return {"X-Error-Message": message} | {name.replace("_", "-"): value for name, value in headers.items()}


REFUSED = "the Hub refused the token of HF_TOKEN (401: Invalid credentials in Authorization header): it is wrong or has"


@pytest.mark.parametrize(
    ("answer", "token", "expected"),
    [
        ((401, says("Invalid credentials in Authorization header"), b""), TOKEN, REFUSED),
        (
            (401, says('User Access Token "x" is expired'), b""),
            TOKEN,
            "the Hub refused the token of HF_TOKEN (401: User",
        ),
        ((401, says(f"No such token: {TOKEN}"), b""), TOKEN, "HF_TOKEN (401: No such token: <token>): it is wrong or"),
        (
            (401, says("", X_Error_Code="RepoNotFound"), b""),
            None,
            "has no such repository, or it is private and no token",
        ),
        ((404, says("", X_Error_Code="RepoNotFound"), b""), TOKEN, "or the token of HF_TOKEN has no access to it"),
        ((404, says("", X_Error_Code="RevisionNotFound"), b""), None, "the Hub has no such commit"),
        (
            (401, says("", X_Error_Code="GatedRepo"), b""),
            None,
            "it is gated: accept its terms on its Hub page, then set",
        ),
        (
            (403, says("Your request is awaiting a review", X_Error_Code="GatedRepo"), b""),
            TOKEN,
            "it is gated, and the token of HF_TOKEN gives no access (403: Your request is awaiting a review): accept",
        ),
        (
            (403, says("Please enable access to public gated repositories in your fine-grained token settings"), b""),
            TOKEN,
            "the Hub denied access (403: Please enable access to public gated repositories in your fine-grained token ",
        ),
        ((403, says("Access to this resource is disabled."), b""), None, "the Hub has disabled this repository"),
        (
            (429, {}, b"slow down"),
            None,
            "the Hub's rate limit is reached (429: slow down): try again later, with HF_TOKEN",
        ),
        ((503, {}, b""), None, "the Hub has an internal error (503: Service Unavailable): try again later"),
        ((418, {}, b""), None, "the Hub refused the request (418: I'm a Teapot)"),
        ((200, {}, b"<html>log in</html>"), None, "does not answer as the Hub does (JSONDecodeError: "),
        (None, None, "broke off (RemoteProtocolError: Server disconnected without sending a response.)"),
    ],
)
def test_each_refusal_is_a_line_of_its_own(served, tmp_path, answer, token, expected):
    served.tree = answer
    line = download(served.address, tmp_path, **({"HF_TOKEN": token} if token else {}))
    assert line.startswith(f"error: me/model@{COMMIT}: ")
    assert expected in line


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((401, says("Invalid credentials in Authorization header"), b""), REFUSED),
        ((403, says("no"), b""), "the Hub denied access (403: no): the token of HF_TOKEN has no permission"),
        ((404, says("", X_Error_Code="EntryNotFound"), b""), f"no file at /me/model/resolve/{COMMIT}/config.json"),
        ((200, {}, b"<html>log in</html>"), "does not answer as the Hub does (FileMetadataError: Response from "),
    ],
)
def test_so_is_that_of_a_single_file(served, tmp_path, answer, expected):
    served.tree, served.file = TREE, answer
    assert expected in download(served.address, tmp_path, HF_TOKEN=TOKEN)


@pytest.mark.parametrize(("program", "name"), [("download_mmlu", "cais/mmlu"), ("download_dataset", "allenai/ai2_arc")])
def test_data_sets_are_told_of_in_the_same_way(served, tmp_path, program, name):
    served.tree = (401, says("Invalid credentials in Authorization header"), b"")
    source = f"hf://datasets/{name}@{COMMIT}"
    line = download(served.address, tmp_path, program, source, HF_TOKEN=TOKEN)
    assert line.startswith(f"error: {name}@{COMMIT}: {REFUSED}")


def test_a_login_is_named_by_its_file(served, tmp_path):
    served.tree = (401, says(f"No such token: {TOKEN}"), b"")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    line = download(served.address, tmp_path)
    assert f"the Hub refused the token of the login in {tmp_path}/home/token (401: No such token: <token>)" in line


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE=1: expected access to the Hub for me/model@"),
        ({"TRANSFORMERS_OFFLINE": "yes"}, "TRANSFORMERS_OFFLINE=yes: expected access to the Hub for me/"),
        ({"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "ON"}, "TRANSFORMERS_OFFLINE=ON: expected access"),
        ({"HF_TOKEN": f"{TOKEN} {TOKEN}"}, "HF_TOKEN: expected a token of the Hub, found one with blanks or non-ASCII"),
        ({"HF_TOKEN": "hf_é"}, "HF_TOKEN: expected a token of the Hub, found one with blanks or non-ASCII characters"),
        ({"HF_ENDPOINT": "127.0.0.1:1"}, "HF_ENDPOINT: expected an address such as https://huggingface.co, found '127"),
        ({"SSL_CERT_FILE": "/no/such"}, "SSL_CERT_FILE: expected a file with certificates at '/no/such' (No such file"),
        (
            {"HTTP_PROXY": "ftp://me:secret@localhost"},
            "HTTP_PROXY or ALL_PROXY: expected a usable proxy, found none (Unknown scheme",
        ),
    ],
)
def test_a_variable_that_is_in_the_way_is_named(tmp_path, variables, expected):
    line = download(variables.pop("HF_ENDPOINT", "http://127.0.0.1:1"), tmp_path, **variables)
    assert expected in line
    assert "secret@" not in line


@pytest.mark.parametrize(
    ("address", "variables", "expected"),
    [
        ("http://127.0.0.1:1", {}, "http://127.0.0.1:1 could not be reached ([Errno 111] Connection refused)"),
        ("http://hub.invalid", {}, "http://hub.invalid could not be found: DNS does not know its name"),
        (
            "http://hub.invalid",
            {"HTTP_PROXY": "http://me:secret@127.0.0.1:1"},
            "http://hub.invalid through the proxy of HTTP_PROXY could not be reached ([Errno 111] Connection refused)",
        ),
    ],
)
def test_a_way_that_ends_early_is_described(tmp_path, address, variables, expected):
    line = download(address, tmp_path, **variables)
    assert expected in line
    assert "secret" not in line


def test_a_proxy_that_refuses_is_named(served, tmp_path):
    """A server that does not support CONNECT takes the place of a proxy that refuses it."""
    line = download("https://hub.invalid", tmp_path, HTTPS_PROXY=served.address)
    assert (
        "the proxy of HTTPS_PROXY refused the connection to https://hub.invalid (501 Unsupported method ('CONNECT'))"
        in line
    )


def test_a_certificate_that_nobody_signed_is_called_so(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject]
    subprocess.run(words, check=True, capture_output=True)
    hub = Hub()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    address = f"https://localhost:{hub.server_port}"
    line = download(address, tmp_path)
    assert f"the certificate of {address} is not trusted (self-signed certificate): set SSL_CERT_FILE to a file" in line
    hub.tree = (503, {}, b"")
    assert "internal error (503: " in download(address, tmp_path, SSL_CERT_FILE=str(certificate))
    hub.shutdown()


def test_a_disk_that_takes_no_more_is_named_by_its_folder(served, tmp_path):
    served.tree, served.file = TREE, BIG
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "home")}
    words = ["--source", f"hf://me/model@{COMMIT}", "--output", tmp_path / "output"]

    other = tmp_path / f".output.unfinished.me--model@{'f' * 40}"
    other.mkdir()

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

    result = run_script("download_model", *words, env=environment, preexec_fn=limit_files)
    assert result.returncode == 1
    partial = tmp_path / f".output.unfinished.me--model@{COMMIT}"
    assert result.stderr.splitlines()[-1] == f"error: me/model@{COMMIT}: {partial}: File too large"
    assert partial.exists()
    assert not other.exists()  # what was left of another commit


def test_a_name_that_the_hub_does_not_allow_is_refused_here(tmp_path):
    line = download("http://127.0.0.1:1", tmp_path, source=f"hf://me/a--b@{COMMIT}")
    assert line == f"error: hf://me/a--b@{COMMIT}: Cannot have -- or .. in repo_id: 'me/a--b'."


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_rules_heed_a_user_who_is_offline(tmp_path, variable):
    """The rules put every job but the downloads offline; a user's own setting also applies to the downloads."""
    config = yaml.safe_load((ROOT / "profiles" / "demo" / "demo.yaml").read_text())
    config["models"]["demo"]["source"] = f"hf://me/model@{COMMIT}"
    path = write_config(config, tmp_path / "config.yaml")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    result = demo(tmp_path, "resources/models/demo", "--configfile", path, env=environment | {variable: "1"})
    assert result.returncode == 1
    assert f"error: {variable}=1: expected access to the Hub for me/model@{COMMIT}; unset" in result.stderr
