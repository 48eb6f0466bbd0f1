"""Run the programs of scripts/ as rules do, and build the arguments that tests give them."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from int4_qat.quantization import schemes
from int4_qat.quantization.schemes import Scheme
from int4_qat.training.recipe import Options
from preloaded import Preloaded

ROOT = Path(__file__).parents[1]
VARIANTS = ["base-bf16", "base-int4", "qat-int4"]
INT4 = schemes.int4(64)
SCHEMES = {"float": INT4, "integer": schemes.int4(64, schemes.INTEGER), "symmetric": schemes.int4(64, None)}

PRELOADED = Preloaded(
    "torch", "transformers", "datasets", "int4_qat.checkpoint.architecture", "lm_eval.tasks", "scipy.stats"
)

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\n" + f"oid sha256:{'4d' * 32}\nsize 12345\n"
RECIPE = {
    "backend": "transformers",
    "qat_target": "base",
    "scheme": None,
    "ignore": None,
    "grid_learning_rate": None,
    "distillation": None,
    "texts": {"questions": 1},
    "packing": False,
    "eval_steps": None,
    "allow_worse": False,
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "finetune_vision_layers": False,
    "dtype": "float32",
    "max_seq_length": 2048,
    "instruction_part": "<start_of_turn>user\n",
    "response_part": "<start_of_turn>model\n",
    "train_batch_size": 8,
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


def entry_of(scheme: Scheme) -> dict:
    """Return an entry of `quantizations` that rounds to nearest in a scheme."""
    return scheme.words | {"method": "rtn", "formats": ["torchao-plain"]}


def seen(scheme: Scheme = INT4, ignore: Iterable[str] = ()) -> dict:
    """Return the part of a recipe that describes the quantization seen in training."""
    return {"scheme": scheme.words, "ignore": list(ignore)}


def quantize_options(scheme: Scheme = INT4, ignore: Iterable[str] = (), method: str = "rtn") -> list[str]:
    """Return the options of quantize for a scheme and a method, in torchao's plain layout."""
    scheme_options = ["--scheme", json.dumps(scheme.words), "--ignore", *ignore]
    return [*scheme_options, "--method", method, "--format", "torchao-plain"]


def run_script(name: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a program of scripts/ in a process of its own, without the Hub.

    Given no option of subprocess.run, the process is one that has loaded the large libraries already, which takes
    seconds. Otherwise it is a new interpreter, as in a rule.
    """
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    if not options and PRELOADED.suits(offline):
        return PRELOADED.run(command, offline, Path.cwd())
    return subprocess.run(command, capture_output=True, text=True, **{"env": offline} | options)


def run_in_process(program: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run a program of scripts/ without the seconds that its imports take; let an InputError propagate."""
    monkeypatch.setattr("sys.argv", [program.__name__, *map(str, arguments)])
    program.main()


def run_in_turn(monkeypatch: pytest.MonkeyPatch, *steps: tuple) -> None:
    """Run programs of scripts/ one after the other in this process; each step is a name and its arguments."""
    for name, *arguments in steps:
        run_in_process(importlib.import_module(name), monkeypatch, *arguments)


def training_options(untrained: Path, texts: Path, folder: Path) -> Options:
    """Return the inputs of a training of the stand-in, and its outputs in a folder."""
    outputs = {"checkpoints": "checkpoints", "adapter": "adapter", "log_table": "training.csv"}
    paths = {name: folder / place for name, place in outputs.items()}
    return Options(model=untrained / "model", texts={"questions": texts}, device="cpu", **paths)


def finetune_options(untrained: Path, texts: Path, folder: Path, **changes) -> list:
    """Return the options of finetune for a recipe with the given changes."""
    options = training_options(untrained, texts, folder)._asdict() | {"texts": f"questions={texts}"}
    given = [name for name in options if name not in Options._field_defaults]
    words = [word for name in given for word in (f"--{name.replace('_', '-')}", options[name])]
    return ["--recipe", json.dumps(RECIPE | changes), *words]


def environment(name: str) -> dict[str, str]:
    """Return the environment to run programs and rules in .venv-<name>; without it, skip or, in CI, fail the test."""
    folder = Path(os.environ.get(f"{name.upper()}_ENVIRONMENT", ROOT / f".venv-{name}"))
    if not (folder / "bin" / "python").exists():
        reason = f"nothing in {folder}: run `make {name}-cpu`"
        pytest.fail(reason) if os.environ.get(f"REQUIRE_{name.upper()}") else pytest.skip(reason)
    return os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
