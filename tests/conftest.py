"""What the tests share: a stand-in that was never trained, and a run of the whole demo."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import make_standin
from int4_qat import mmlu_harness, standin

ROOT = Path(__file__).parents[1]
RECIPE = {
    "backend": "transformers",
    "qat_scheme": None,
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


def run_script(name: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """A program of scripts/, as a rule runs it."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    options.setdefault("env", os.environ | {"HF_HUB_OFFLINE": "1"})
    return subprocess.run(command, capture_output=True, text=True, **options)


def snakemake(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Snakemake on this repository's workflow."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


def demo(directory: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    """The demo's profile in another folder."""
    return snakemake("--profile", ROOT / "profiles" / "demo", "--directory", directory, *arguments, **options)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as make_standin writes it (mmlu/, model/), without the minute of training."""
    folder = tmp_path_factory.mktemp("standin")
    torch.manual_seed(0)
    facts = standin.invent_families(4, 10, random.Random(0))
    sizes = {"auxiliary_train": 200, "dev": 57, "validation": 57, "test": 114}
    questions = standin.ask(facts, mmlu_harness.subjects(), sizes, seed=1)
    tokenizer = make_standin.make_tokenizer(questions)
    make_standin.write_model(make_standin.make_model(len(tokenizer)), tokenizer, folder / "model")
    make_standin.write_dataset(questions, folder / "mmlu" / "all")
    return folder


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


@pytest.fixture
def mmlu_dir() -> Path:
    """The real MMLU."""
    folder = os.environ.get("MMLU_DIR")
    if not folder:
        pytest.skip("MMLU_DIR is not set: no real MMLU to test with")
    return Path(folder)
