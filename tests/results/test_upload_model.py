"""Test that uploads require results that allow them, are verified first, and never reveal the token."""

import base64
import hashlib
import json
import os
import shutil
import threading
from argparse import Namespace
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import yaml

import upload_model
from int4_qat.quantization import schemes
from int4_qat.system.errors import InputError
from programs import ROOT, entry_of, run_in_process, run_script
from test_model_card import change
from workflows import demo, snakemake, write_config

TOKEN = "hf_secretSecretSecretSecretSecret"
PUBLISHED = "me/demo"
REPOSITORY = f"{PUBLISHED}-INT4"  # for the folder in torchao's format
FOR_VLLM = f"{PUBLISHED}-W4A16"


class Hub:
    """A fake Hub with the endpoints that the client uses: create, validate, preupload, LFS batch and upload, commit."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, authorization
        self.created: dict | None = None
        self.is_private: bool | None = None
        self.public: set[str] = set()  # repositories that are public, whatever is_private says
        self.objects: dict[str, bytes] = {}
        self.uploads = 0
        self.repositories: dict[str, dict[str, bytes]] = {REPOSITORY: {}, FOR_VLLM: {}}
        self.refuses_commits: bool | str = False
        self.refuses_tokens = False
        self.address = ""

    @property
    def files(self) -> dict[str, bytes]:
        return self.repositories[REPOSITORY]

    @files.setter
    def files(self, files: dict[str, bytes]) -> None:
        self.repositories[REPOSITORY] = files

    def answer(self, method: str, path: str, content: bytes) -> tuple[int, dict | list]:
        if self.refuses_tokens:
            return 401, {"error": f"Invalid credentials in Authorization header: {TOKEN}"}
        if path == "/api/repos/create":
            self.created = json.loads(content)
            repository = f"{self.created['organization']}/{self.created['name']}"
            if self.is_private is None:
                self.is_private = self.created.get("visibility") == "private"
            return 200, {"url": f"{self.address}/{repository}", "id": repository, "name": repository}
        repository = next((name for name in self.repositories if f"/{name}" in path), None)
        if path == f"/api/models/{repository}":
            private = self.is_private and repository not in self.public
            return 200, {"id": repository, "private": private, "siblings": [], "tags": [], "sha": "0" * 40}
        if path.startswith(f"/api/models/{repository}/tree/"):
            files = self.repositories[repository]
            return 200, [{"type": "file", "path": name, "oid": "0" * 40, "size": 0} for name in files]
        if path == "/api/validate-yaml":
            card = json.loads(content)["content"]
            wrong = [] if "\nlicense: " in card else [{"message": "license is missing"}]
            return (400 if wrong else 200), {"errors": wrong, "warnings": []}
        if path.startswith(f"/api/models/{repository}/preupload/"):
            modes = {"path": None, "shouldIgnore": False}
            wanted = [file["path"] for file in json.loads(content)["files"]]
            return 200, {
                "files": [
                    modes | {"path": name, "uploadMode": "lfs" if name.endswith(".safetensors") else "regular"}
                    for name in wanted
                ]
            }
        if path == f"/{repository}.git/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self.action(one) for one in json.loads(content)["objects"]]}
        if path.startswith("/lfs/"):
            self.objects[path.removeprefix("/lfs/")] = content
            self.uploads += 1
            return 200, {}
        if path.startswith(f"/api/models/{repository}/commit/"):
            return self.commit(repository, content)
        return 404, {"error": f"{method} {path}"}

    def action(self, wanted: dict) -> dict:
        if wanted["oid"] in self.objects:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.address}/lfs/{wanted['oid']}", "header": {}}}}

    def commit(self, repository: str, content: bytes) -> tuple[int, dict]:
        if self.refuses_commits in (True, repository):
            return 403, {"error": "You may not write here"}
        files = self.repositories[repository]
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.objects[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        link = f"{self.address}/{repository}/commit/{'c' * 40}"
        return 200, {"success": True, "commitOid": "c" * 40, "commitUrl": link}


@pytest.fixture
def writable_hub() -> Iterator[Hub]:
    """Yield a Hub on the loopback interface that accepts uploads."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
            status, reply = hub.answer(self.command, self.path.partition("?")[0], content)
            encoded = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()


def environment(hub: Hub, token: str | None = TOKEN) -> dict[str, str]:
    """Return an environment that points the client to the fake Hub and hides the login of the user running the tests.

    The fake Hub supports LFS but not Xet.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    kept |= {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/nonexistent"}
    return kept | ({"HF_TOKEN": token} if token else {})


def upload(results, *more, variant="qat-int4", recovered=-1.0, lost=1.0, **options):
    thresholds = ["--recovered-at-least", recovered, "--lost-at-most", lost]
    arguments = ["--results", results, "--variant", variant, "--repository", PUBLISHED, *thresholds]
    return run_script("upload_model", *arguments, *more, **options)


def upload_of_demo(trained, *more, **options):
    """Upload the variant that the demo publishes, from a copy of its results."""
    return upload(trained, *more, variant="qad-int4", **options)


@pytest.fixture
def trained(demo_run, tmp_path):
    """Copy the demo's results, in which the cost of int4 is resolved, and return their folder."""
    for name in ("results", "resources", "benchmarks"):
        shutil.copytree(demo_run / name, tmp_path / "run" / name)
    return tmp_path / "run" / "results" / "demo"


@pytest.mark.parametrize(
    ("path", "keys", "value", "expected"),
    [
        ("qat-int4/checkpoint/manifest.json", ["weights_that_differ"], 3, "3 exported weights differ"),
        ("qat-int4/parity.json", ["weights_that_differ"], 2, "2 exported weights differ"),
        ("summary.json", ["variants", 5, "recovered_resolved"], False, "recovered of mmlu is not resolved"),
        ("summary.json", ["variants", 5, "recovered_ci95"], [-2, 1], "of mmlu may be as low as -2.0000, expected at"),
        (
            "summary.json",
            ["comparisons", 8, "difference_ci95"],
            [-2.0, 0.1],
            "the loss of mmlu may be as high as 2.0000, expected at most",
        ),
        ("summary.json", ["model"], "other", "results/demo/summary.json: expected the recorded file"),
    ],
)
def test_the_gate_says_what_stands_against_it(finished, path, keys, value, expected):
    change(finished / "summary.json", "variants", 5, "recovered_resolved", value=True)
    change(finished / "summary.json", "variants", 5, "recovered_ci95", value=[0.1, 0.2])
    change(finished / path, *keys, value=value)
    found = upload_model.obstacles(
        Namespace(
            results=finished,
            variant="qat-int4",
            repository=PUBLISHED,
            recovered_at_least=-1.0,
            lost_at_most=1.0,
        )
    )
    assert len(found) == 1
    assert expected in found[0]


def obstacles(results, variant):
    """Return what stands against publishing a variant whose figures are good enough."""
    change(results / "summary.json", "variants", 5, "recovered_resolved", value=True)
    change(results / "summary.json", "variants", 5, "recovered_ci95", value=[0.1, 0.2])
    thresholds = {"recovered_at_least": -1.0, "lost_at_most": 1.0}
    return upload_model.obstacles(Namespace(results=results, variant=variant, repository=PUBLISHED, **thresholds))


def test_only_the_variant_of_the_card_is_published(finished):
    (found,) = obstacles(finished, "base-int4")
    assert found == "--variant: expected qat-int4, which the card describes, found base-int4"


def test_a_file_that_the_run_did_not_write_is_not_published(finished):
    (finished / "qat-int4" / "checkpoint" / "notes.txt").touch()
    (found,) = obstacles(finished, "qat-int4")
    assert found == "qat-int4/checkpoint/notes.txt: expected a file of the run, found another"


def test_without_a_repository_nothing_is_published(small_run):
    """The shipped configs name no repository, so publishing stops with an error."""
    result = small_run.snakemake("publish", env=os.environ | {"HF_TOKEN": TOKEN})
    assert result.returncode == 1
    assert (
        "qat-int4 is not published: publish.repository names no repository; recovered of mmlu is not resolved"
        in result.stderr
    )


@pytest.mark.parametrize("name", ["model_card.md", "lora-bf16/latency.json", "qat-int4/parity.json"])
def test_a_missing_evaluation_or_card_is_named(finished, writable_hub, name):
    (finished / name).unlink()
    result = upload(finished, env=environment(writable_hub))
    assert result.stderr == f"error: qat-int4 is not published: {name} is missing\n"
    assert writable_hub.requests == []


def test_snakemake_publishes_and_the_token_stays_in_the_environment(trained, demo_run, writable_hub, tmp_path):
    """The rule uploads the whole checkpoint and the card privately, and the token appears in no output or file."""
    config = yaml.safe_load((ROOT / "profiles" / "demo" / "demo.yaml").read_text())
    config["publish"]["repository"] = "me/{model}"
    path = write_config(config, tmp_path / "config.yaml")
    shutil.copytree(demo_run / ".snakemake", tmp_path / "run" / ".snakemake", dirs_exist_ok=True)
    options = ["--configfile", path, "--printshellcmds", "--verbose", "publish"]
    result = demo(tmp_path / "run", *options, env=environment(writable_hub))
    assert result.returncode == 0, result.stderr[-3000:]
    assert writable_hub.created["visibility"] == "private"
    folder = trained / "qad-int4" / "checkpoint"
    sent = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".snakemake_timestamp"}
    sent["README.md"] = (trained / "model_card.md").read_bytes()
    assert writable_hub.files == sent
    published = json.loads((trained / "published.json").read_text())
    (found,) = published["repositories"].values()
    assert found["files"]["model.safetensors"] == hashlib.sha256(sent["model.safetensors"]).hexdigest()
    shown = {path.partition("?")[0]: authorization for _, path, authorization in writable_hub.requests}
    assert {authorization for path, authorization in shown.items() if REPOSITORY in path} == {f"Bearer {TOKEN}"}
    assert {authorization for path, authorization in shown.items() if path.startswith("/lfs/")} == {None}
    assert TOKEN not in result.stdout + result.stderr
    assert [
        file for file in (tmp_path / "run").rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()
    ] == []
    assert TOKEN.encode() not in b"".join(sent.values())


def test_an_upload_goes_on_where_it_stopped(trained, writable_hub):
    writable_hub.refuses_commits = True
    result = upload_of_demo(trained, recovered=0.0, lost=0.1, env=environment(writable_hub))
    assert result.returncode == 1
    expected = "the upload failed: the Hub denied access (403: You may not write here): the token of HF_TOKEN"
    assert f"error: {REPOSITORY}: {expected}" in result.stderr
    assert "Traceback" not in result.stderr
    assert TOKEN not in result.stderr
    assert (writable_hub.uploads, writable_hub.files) == (1, {})
    writable_hub.refuses_commits = False
    assert upload_of_demo(trained, env=environment(writable_hub)).returncode == 0
    assert writable_hub.uploads == 1
    assert "model.safetensors" in writable_hub.files


def test_no_other_weights_stay_beside_an_upload_of_demo(trained, writable_hub):
    old = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "picture.png")
    writable_hub.files = dict.fromkeys(old, b"")
    result = upload_of_demo(trained, env=environment(writable_hub))
    assert result.returncode == 0, result.stderr
    assert writable_hub.files.keys() & set(old) == {"picture.png"}
    assert "model.safetensors" in writable_hub.files


def test_thresholds_are_of_the_ends_of_the_intervals(trained, writable_hub):
    summary = json.loads((trained / "summary.json").read_text())
    (row,) = (row for row in summary["variants"] if row["name"] == "qad-int4")
    between = (row["recovered_ci95"][0] + row["recovered"]) / 2
    result = upload_of_demo(trained, recovered=between, env=environment(writable_hub))
    assert "recovered of mmlu may be as low as" in result.stderr
    assert writable_hub.requests == []


def test_a_dry_run_shows_all_and_asks_nobody(trained, writable_hub):
    result = upload_of_demo(trained, "--dry-run", env=environment(writable_hub, token=None))
    assert result.returncode == 0, result.stderr
    size = (trained / "qad-int4" / "checkpoint" / "model.safetensors").stat().st_size
    assert f"model.safetensors: {size} bytes" in result.stdout
    assert f"README.md: {(trained / 'model_card.md').stat().st_size} bytes" in result.stdout
    assert f"would be uploaded to {REPOSITORY} (private)" in result.stdout
    assert writable_hub.requests == []


def test_without_a_token_nothing_is_asked(trained, writable_hub):
    result = upload_of_demo(trained, env=environment(writable_hub, token=None))
    assert result.stderr == "error: HF_TOKEN: expected a token with write access, found none in the environment\n"
    assert writable_hub.requests == []


def test_a_token_that_the_hub_refuses_is_called_so(trained, writable_hub):
    writable_hub.refuses_tokens = True
    result = upload_of_demo(trained, env=environment(writable_hub))
    assert result.returncode == 1
    expected = "the Hub refused the token of HF_TOKEN (401: Invalid credentials in Authorization header: <token>)"
    assert f"error: {REPOSITORY}: the upload failed: {expected}: it is wrong or has expired" in result.stderr
    assert TOKEN not in result.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_OFFLINE": "1"}, f"HF_HUB_OFFLINE=1: expected access to the Hub for {PUBLISHED}; unset"),
        ({"HF_TOKEN": f"{TOKEN} {TOKEN}"}, "HF_TOKEN: expected a token of the Hub, found one with blanks or non-ASCII"),
    ],
)
def test_what_cannot_be_sent_ends_before_the_results_are_verified(tmp_path, writable_hub, variables, expected):
    result = upload(tmp_path / "nowhere", env=environment(writable_hub) | variables)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {expected}")
    assert writable_hub.requests == []


def test_a_public_repository_takes_nothing_private(trained, writable_hub):
    writable_hub.is_private = False
    result = upload_of_demo(trained, env=environment(writable_hub))
    assert result.stderr.startswith(f"error: {REPOSITORY}: expected a private repository, found a public one")
    assert writable_hub.files == {}


def test_a_private_repository_stays_private_and_is_called_so(trained, writable_hub):
    writable_hub.is_private = True
    result = upload_of_demo(trained, "--public", env=environment(writable_hub))
    assert result.returncode == 0, result.stderr
    assert " (private): " in result.stdout


@pytest.fixture
def in_two_formats(tmp_path, writable_hub, monkeypatch):
    """Write publishable results of a variant in two formats, and return a function that uploads them.

    The function returns the repositories that upload_model records.
    """
    results = tmp_path / "results"
    entry = entry_of(schemes.int4(64, schemes.INTEGER)) | {"formats": ["torchao-plain", "compressed-tensors"]}
    settings = {"variants": ["base-bf16", "qad-w4"], "quantizations": {"w4": entry}}
    for folder in ("checkpoint", "compressed-tensors"):
        (results / "qad-w4" / folder).mkdir(parents=True)
        (results / "qad-w4" / folder / "model.safetensors").write_bytes(folder.encode())
    (results / "provenance.json").write_text(json.dumps({"settings": settings}))
    (results / "model_card.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr(upload_model, "obstacles", lambda _: [])
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", writable_hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def upload(*more):
        options = ["--results", results, "--variant", "qad-w4", "--repository", PUBLISHED]
        options += ["--recovered-at-least", 0, "--lost-at-most", 1, "--output", tmp_path / "published.json"]
        run_in_process(upload_model, monkeypatch, *options, *more)
        return json.loads((tmp_path / "published.json").read_text())["repositories"]

    return upload


def test_each_format_goes_into_a_repository_of_its_own(in_two_formats, writable_hub):
    published = in_two_formats()
    assert published.keys() == {REPOSITORY, FOR_VLLM}
    found = {name: files["model.safetensors"] for name, files in writable_hub.repositories.items()}
    assert found == {REPOSITORY: b"checkpoint", FOR_VLLM: b"compressed-tensors"}
    assert all("README.md" in files for files in writable_hub.repositories.values())
    assert {name: each["commit"] for name, each in published.items()} == {
        name: f"{writable_hub.address}/{name}/commit/{'c' * 40}" for name in published
    }


def test_a_second_repository_that_refuses_is_named_and_filled_by_the_next_call(in_two_formats, writable_hub):
    writable_hub.refuses_commits = FOR_VLLM
    with pytest.raises(InputError, match=f"^{FOR_VLLM}: the upload failed: the Hub denied access"):
        in_two_formats()
    assert "model.safetensors" in writable_hub.files
    assert writable_hub.repositories[FOR_VLLM] == {}
    writable_hub.refuses_commits = False
    in_two_formats()
    assert writable_hub.repositories[FOR_VLLM]["model.safetensors"] == b"compressed-tensors"


def test_nothing_is_sent_if_one_of_two_repositories_is_public(in_two_formats, writable_hub):
    writable_hub.public = {FOR_VLLM}
    with pytest.raises(InputError, match=f"^{FOR_VLLM}: expected a private repository"):
        in_two_formats()
    assert writable_hub.repositories == {REPOSITORY: {}, FOR_VLLM: {}}


def test_a_variant_that_is_none_is_one_line(finished):
    found = upload_model.missing_results(finished, "base-bf16")
    assert found[0].startswith("--variant: expected a quantized variant of base-bf16, ")


def test_publishing_is_never_part_of_the_default(tmp_path):
    assert "upload_model" not in snakemake("--dry-run", "--directory", tmp_path).stdout
