"""What the tests share: a stand-in that was never trained, and a run of the whole demo."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import make_standin
from int4_qat import gemma_folder, mmlu_harness, standin

ROOT = Path(__file__).parents[1]
VARIANTS = ["base-bf16", "base-int4", "qat-int4"]
SKIP = ["lm_head", "vision_tower", "multi_modal_projector"]
RECIPE = {
    "backend": "transformers",
    "qat_scheme": None,
    "group_size": 64,
    "qat_target": "base",
    "skip": ["lm_head", "vision_tower", "multi_modal_projector"],
    "distillation_weight": 0,
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "finetune_vision_layers": False,
    "dtype": "float32",
    "max_seq_length": 2048,
    "instruction_part": "<start_of_turn>user\n",
    "response_part": "<start_of_turn>model\n",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "warmup_steps": 2,
    "num_train_epochs": 1,
    "max_steps": 12,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_steps": 4,
    "optim": "adamw_torch",
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "seed": 3407,
}


def pytest_itemcollected(item: pytest.Item) -> None:
    """What needs the small run is slow; all tests that share a run of minutes go to one worker."""
    if "small_run" in item.fixturenames:
        item.add_marker(pytest.mark.slow)
    item.add_marker(pytest.mark.xdist_group("runs" if shares_a_run(item) else item.path.name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those come first: a worker that began with them late would be waited for."""
    items.sort(key=shares_a_run, reverse=True)


def shares_a_run(item: pytest.Item) -> bool:
    return not {"demo_run", "small_run", "slurm"}.isdisjoint(item.fixturenames)


def run_script(name: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """A program of scripts/, as a rule runs it."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    options.setdefault("env", os.environ | {"HF_HUB_OFFLINE": "1"})
    return subprocess.run(command, capture_output=True, text=True, **options)


def run_in_process(program: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """A program of scripts/ without the seconds that its imports take; an InputError comes as it is."""
    monkeypatch.setattr("sys.argv", [program.__name__, *map(str, arguments)])
    program.main()


def command(workflow: Path, *arguments: object) -> list[str]:
    """Snakemake's command line for the workflow in a folder."""
    return [sys.executable, "-m", "snakemake", "--snakefile", str(workflow / "Snakefile"), *map(str, arguments)]


def snakemake(*arguments: object, workflow: Path = ROOT, **options) -> subprocess.CompletedProcess:
    """Run Snakemake from the workflow's folder, as its users do."""
    return subprocess.run(command(workflow, *arguments), capture_output=True, text=True, cwd=workflow, **options)


def demo(directory: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    """The demo's profile in another folder."""
    return snakemake("--profile", "profiles/demo", "--directory", directory, *arguments, **options)


def planned(result: subprocess.CompletedProcess) -> dict[str, int]:
    """Jobs by rule of a dry-run."""
    assert result.returncode == 0, result.stderr[-3000:]
    pairs = [line.split() for line in result.stdout.splitlines()]
    counts = {
        pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0].isidentifier() and pair[1].isdigit()
    }
    return {name: count for name, count in counts.items() if name not in ("all", "total")}


def copy_workflow(folder: Path) -> Path:
    """The files that make up the workflow, to be edited."""
    folder.mkdir()
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copy(ROOT / "config.yaml", folder)
    for name in ("rules", "scripts", "envs", "profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def small_config(standin: Path) -> dict:
    """The demo's config with the untrained stand-in as local folders, and little work."""
    config = yaml.safe_load((ROOT / "profiles" / "demo" / "demo.yaml").read_text())
    config["models"]["demo"]["source"] = str(standin / "model")
    config["data"]["source"] = str(standin / "mmlu")
    config["finetune"] |= {
        "learning_rate": 3e-3,
        "max_steps": 12,
        "save_steps": 4,
        "warmup_steps": 2,
        "per_device_train_batch_size": 8,
    }
    config["evaluation"]["memory"] |= {"max_new_tokens": 4}
    config["evaluation"]["latency"] |= {"input_len": 8, "output_len": 4, "warmup": 1, "iterations": 2}
    return config


def write_config(config: dict, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as make_standin writes it (mmlu/, model/), without the minute of training."""
    folder = tmp_path_factory.mktemp("standin")
    torch.manual_seed(0)
    facts = standin.invent_families(4, 10, random.Random(0))
    sizes = {"auxiliary_train": 200, "dev": 5 * 57, "validation": 57, "test": 114}
    questions = standin.ask(facts, mmlu_harness.subjects(), sizes, seed=1)
    tokenizer = make_standin.make_tokenizer(questions)
    gemma_folder.write_model(make_standin.make_model(len(tokenizer)), tokenizer, folder / "model")
    make_standin.write_dataset(questions, folder / "mmlu" / "all")
    return folder


@pytest.fixture(scope="session")
def texts(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in's questions, formatted for training."""
    path = tmp_path_factory.mktemp("texts") / "train.parquet"
    source = untrained / "mmlu" / "all" / "auxiliary_train-00000-of-00001.parquet"
    result = run_script("format_mmlu", "--mmlu", source, "--tokenizer", untrained / "model", "--output", path)
    assert result.returncode == 0, result.stderr
    return path


def finetune_options(untrained: Path, texts: Path, folder: Path, **changes) -> list:
    """Options of finetune, for a recipe with some changes."""
    return [
        *("--model", untrained / "model", "--texts", texts, "--recipe", json.dumps(RECIPE | changes)),
        *("--checkpoints", folder / "checkpoints"),
        *("--adapter", folder / "adapter", "--log-table", folder / "training.csv"),
    ]


@pytest.fixture(scope="session")
def hub() -> Iterator[tuple[str, list[str]]]:
    """A Hub on loopback that knows gated repositories only: its address, and the requests that came."""
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
    """The folder of a whole demo run; its name has a space, as a user's may, and the Hub is one that counts."""
    folder = tmp_path_factory.mktemp("whole demo")
    address, requests = hub
    requests.clear()
    result = demo(folder, env=os.environ | {"HF_ENDPOINT": address})
    assert result.returncode == 0, result.stderr[-5000:]
    assert requests == []
    return folder


class Run(NamedTuple):
    """A finished run: a copy of the workflow, of the stand-in and of the config, and where it ran."""

    workflow: Path
    standin: Path
    config: Path
    directory: Path

    def snakemake(self, *arguments: object, **options) -> subprocess.CompletedProcess:
        profile = ["--profile", "profiles/demo", "--configfile", self.config, "--directory", self.directory]
        return snakemake(*profile, *arguments, workflow=self.workflow, **options)


@pytest.fixture(scope="session")
def small_run(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole chain, small, with everything in copies that a test may edit."""
    folder = tmp_path_factory.mktemp("small run")
    standin = shutil.copytree(untrained, folder / "standin")
    config = write_config(small_config(standin), folder / "config.yaml")
    run = Run(copy_workflow(folder / "workflow"), standin, config, folder / "directory")
    result = run.snakemake()
    assert result.returncode == 0, result.stderr[-5000:]
    return run


@pytest.fixture
def finished(small_run: Run, tmp_path: Path) -> Path:
    """A copy of the results of the small run that a test may edit, with the data that they come from beside them."""
    for name in ("results", "resources", "benchmarks"):
        shutil.copytree(small_run.directory / name, tmp_path / "copy" / name)
    return tmp_path / "copy" / "results" / "demo"


def environment(name: str) -> dict[str, str]:
    """The variables with which programs and rules run in .venv-<name>; the test is skipped, or fails in CI, without."""
    folder = Path(os.environ.get(f"{name.upper()}_ENVIRONMENT", ROOT / f".venv-{name}"))
    if not (folder / "bin" / "python").exists():
        reason = f"nothing in {folder}: run `make {name}-cpu`"
        pytest.fail(reason) if os.environ.get(f"REQUIRE_{name.upper()}") else pytest.skip(reason)
    return os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm on loopback, gone afterwards; where it cannot be had the test is skipped, or fails if CI requires it."""
    folder = ROOT / "tests" / "slurm"
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
def results(tmp_path: Path) -> Path:
    """What summarize reads: three variants on a thousand questions, with the card's memory and latency."""
    generator = np.random.default_rng(0)
    right = {"base-bf16": 0.9, "base-int4": 0.7, "qat-int4": 0.8}
    for name in VARIANTS:
        folder = tmp_path / name
        folder.mkdir()
        correct = generator.permutation(np.arange(1000) < 1000 * right[name])
        table = pd.DataFrame({"subject": "anatomy", "index": range(1000), "correct": correct, "answer": 0})
        table[[f"log_likelihood_{letter}" for letter in "ABCD"]] = generator.normal(size=(1000, 4))
        table.to_parquet(folder / "mmlu_samples.parquet")
        mmlu = {"accuracy": right[name], "stderr": 0.01, "questions": 1000, "subjects": 1}
        mmlu["by_subject"] = {"anatomy": {"category": "stem"}}
        memory = {"peak_gb": 24.5 if name == "base-bf16" else 8.34, "checkpoint_gb": 1, "weights_gb": 1}
        memory |= {"dequantized": False, "measure": "max_memory_reserved", "predicted": {"cache_gb": 0.1}}
        batch = {"mean_s": 3.73 if name == "base-bf16" else 2.16, "batch_size": 1, "std_s": 0.1}
        batch |= {"percentiles_s": {"10": 2, "90": 4}, "bandwidth_limit_percent": 50.0}
        batches = [batch, batch | {"batch_size": 256, "mean_s": 16.0, "std_s": None}]
        latency = {**batch, "batches": batches, "engine": "vllm", "dequantized": False, "output_len": 256}
        for key, content in {"mmlu": mmlu, "memory": memory, "latency": latency}.items():
            (folder / f"{key}.json").write_text(json.dumps(content))
    parity = {"weights_that_differ": 0, "relative_logit_difference": 0.02, "target": "base"}
    (tmp_path / "qat-int4" / "parity.json").write_text(json.dumps(parity))
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "costs.json").write_text("{}")
    (tmp_path / "contamination.json").write_text("{}")
    return tmp_path


@pytest.fixture
def mmlu_dir() -> Path:
    """The real MMLU."""
    folder = os.environ.get("MMLU_DIR")
    if not folder:
        pytest.skip("MMLU_DIR is not set: no real MMLU to test with")
    return Path(folder)
