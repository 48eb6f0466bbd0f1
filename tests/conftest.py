"""Fixtures that the tests share, such as an untrained stand-in and a run of the whole demo."""

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import families
import make_standin
from int4_qat.data import mmlu
from int4_qat.standin import gemma_folder, persons, standin
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization
from programs import ROOT, run_script
from workflows import Run, copy_workflow, demo, small_config, write_config

SHARED_RUNS = ("slurm", "small_run", "demo_run")  # fixtures of minutes, those with the longest tests first


def shared_run(item: pytest.Item) -> str | None:
    return next((name for name in SHARED_RUNS if name in item.fixturenames), None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests that need a whole chain as slow, and send all tests that share one to one worker."""
    if shared_run(item):
        item.add_marker(pytest.mark.slow)
    item.add_marker(pytest.mark.xdist_group(shared_run(item) or item.path.name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that share a long run first: if their worker began late, the others would wait for it."""
    items.sort(key=lambda item: (*SHARED_RUNS, None).index(shared_run(item)))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as make_standin writes it (mmlu/, model/, text/), without the minute of training."""
    folder = tmp_path_factory.mktemp("standin")
    torch.manual_seed(0)
    facts = standin.invent_families(4, 10, random.Random(0))
    sizes = {"auxiliary_train": 200, "dev": 5 * 57, "validation": 57, "test": 114}
    questions = standin.ask(facts, mmlu.SUBJECTS, sizes, seed=1)
    told = persons.invent(12, 4, random.Random(2))
    tokenizer = make_standin.make_tokenizer(questions, told)
    gemma_folder.write_model(make_standin.make_model(len(tokenizer)), tokenizer, folder / "model")
    make_standin.write_dataset(questions, folder / "mmlu" / "all")
    papers = {"held_out": questions["validation"], "train": questions["auxiliary_train"]}
    make_standin.write_texts(papers, told, folder / "text", random.Random(3))
    return folder


@pytest.fixture(scope="session")
def words(untrained: Path) -> list[str]:
    """Return words that are one token each to the stand-in's tokenizer."""
    vocabulary = tokenization.load_tokenizer(untrained / "model").get_vocab()
    return sorted(word for word in vocabulary if word.startswith(" ") and len(word) > 3)


@pytest.fixture(scope="session")
def texts(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the stand-in's questions, formatted for training."""
    path = tmp_path_factory.mktemp("texts") / "train.parquet"
    source = untrained / "mmlu" / "all" / "auxiliary_train-00000-of-00001.parquet"
    result = run_script("format_mmlu", "--mmlu", source, "--tokenizer", untrained / "model", "--output", path)
    assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def mmlu_folder(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the stand-in's questions, as download_mmlu writes it."""
    folder = tmp_path_factory.mktemp("mmlu") / "mmlu"
    result = run_script("download_mmlu", "--source", untrained / "mmlu", "--output", folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def llama(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny Llama."""
    return families.write("llama", untrained / "model", tmp_path_factory.mktemp("families") / "llama")


@pytest.fixture
def spoiled(llama: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny Llama that a test may damage."""
    return shutil.copytree(llama, tmp_path / "source")


@pytest.fixture
def refused_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Return a function that downloads a model that must be refused, and returns the message without the source's path.

    It also checks that the refusal leaves no files and that the message is one line.
    """

    def refuse(source: Path) -> str:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(InputError) as caught:
            families.bring(source, tmp_path / "model", monkeypatch)
        assert sorted(tmp_path.iterdir()) == before
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{source}").removeprefix("/").removeprefix(": ")

    return refuse


@pytest.fixture(scope="session")
def hub() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a Hub on loopback where all repositories are gated, and the list of requests it received."""
    requests: list[str] = []

    class Gated(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory, hub: tuple[str, list[str]]) -> Path:
    """Return the folder of a whole demo run, which must send no request to the Hub.

    The folder's name has a space, as a user's may.
    """
    folder = tmp_path_factory.mktemp("whole demo")
    address, requests = hub
    requests.clear()
    result = demo(folder, env=os.environ | {"HF_ENDPOINT": address})
    assert result.returncode == 0, result.stderr[-5000:]
    assert requests == []
    return folder


@pytest.fixture(scope="session")
def small_run(untrained: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """Return a small run of the whole workflow, with all its inputs in copies that a test may edit.

    The workers share it: the first that needs it runs it, and another waits for its end.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "small run"
    run = Run(folder / "workflow", folder / "standin", folder / "config.yaml", folder / "directory")
    with FileLock(f"{folder}.lock"):
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(untrained, run.standin)
            copy_workflow(run.workflow)
            write_config(small_config(run.standin), run.config)
            result = run.snakemake()
            assert result.returncode == 0, result.stderr[-5000:]
            (folder / "finished").touch()
    return run


@pytest.fixture
def finished(small_run: Run, tmp_path: Path) -> Path:
    """Return a copy of the small run's results that a test may edit; the data behind them are copied too."""
    for name in ("results", "resources", "benchmarks"):
        shutil.copytree(small_run.directory / name, tmp_path / "copy" / name)
    return tmp_path / "copy" / "results" / "demo"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run Slurm on loopback for the session; without root or its packages, skip the test, or fail it if required."""
    folder = ROOT / "tests" / "cluster" / "slurm"
    state = tmp_path_factory.mktemp("slurm")
    needed = ("slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged")
    missing = [name for name in needed if not shutil.which(name, path="/usr/sbin:/sbin")]
    if missing or os.geteuid() != 0:
        packages = "slurm-wlm slurmdbd munge mariadb-server"
        reason = f"needs root and `apt-get install {packages}` (missing: {', '.join(missing) or 'root'})"
        pytest.fail(reason) if os.environ.get("REQUIRE_SLURM") else pytest.skip(reason)
    try:
        subprocess.run([folder / "up.sh", state], check=True)
        yield
    finally:
        subprocess.run([folder / "down.sh", state], check=True)


@pytest.fixture
def mmlu_dir() -> Path:
    """Return the folder of the real MMLU, or skip the test if MMLU_DIR is not set."""
    folder = os.environ.get("MMLU_DIR")
    if not folder:
        pytest.skip("MMLU_DIR is not set: no real MMLU to test with")
    return Path(folder)
