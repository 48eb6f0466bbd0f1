"""Run the workflow as its users do, in place or in a copy that a test may edit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

from configs import demo_config
from preloaded import Preloaded
from programs import ROOT

PLANNER = Preloaded("snakemake.cli")
VARIANTS = ["base-bf16", "base-int4", "base-gptq", "lora-bf16", "lora-int4", "qat-int4"]  # of a small run


def command(workflow: Path, *arguments: object) -> list[str]:
    """Return Snakemake's command line for the workflow in a folder."""
    return [sys.executable, "-m", "snakemake", "--snakefile", str(workflow / "Snakefile"), *map(str, arguments)]


def snakemake(*arguments: object, workflow: Path = ROOT, **options) -> subprocess.CompletedProcess:
    """Run Snakemake from the workflow's folder, as its users do; a plan is made by a process that has it loaded."""
    line = command(workflow, *arguments)
    if "--dry-run" in arguments and not options and PLANNER.suits(os.environ):
        return PLANNER.run(line, os.environ, workflow)
    return subprocess.run(line, capture_output=True, text=True, cwd=workflow, **options)


def demo(directory: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Run the demo's profile in another folder."""
    return snakemake("--profile", "profiles/demo", "--directory", directory, *arguments, **options)


def planned(result: subprocess.CompletedProcess) -> dict[str, int]:
    """Return the number of jobs of each rule in a dry run."""
    assert result.returncode == 0, result.stderr[-3000:]
    pairs = [line.split() for line in result.stdout.splitlines()]
    counts = {
        pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0].isidentifier() and pair[1].isdigit()
    }
    return {name: count for name, count in counts.items() if name not in ("all", "total")}


def copy_workflow(folder: Path) -> Path:
    """Copy the files that make up the workflow to a new folder, for a test to edit."""
    folder.mkdir()
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copy(ROOT / "config.yaml", folder)
    for name in ("rules", "scripts", "envs", "profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def small_config(standin: Path) -> dict:
    """Return a small config: the demo's, with the untrained stand-in's folders, only the card's arms, and few steps."""
    config = demo_config()
    config["models"]["demo"]["source"] = str(standin / "model")
    config["data"]["source"] = str(standin / "mmlu")
    config["finetune"] |= {
        "learning_rate": 3e-3,
        "max_steps": 12,
        "save_steps": 4,
        "warmup_steps": 2,
        "train_batch_size": 8,
    }
    config["finetune"]["arms"] = {"lora": {"quantization": None}, "qat": {"quantization": "int4"}}
    config["variants"] = [*VARIANTS]
    del config["plots"]["colours"]["qad"]
    config["publish"]["variant"] = "qat-int4"
    config["texts"], config["calibration"]["texts"] = {}, ["questions"]
    text = {"source": str(standin / "text"), "files": "questions.txt"}
    config["evaluation"]["divergence"] |= {"texts": {"families": text}, "context": 64, "limit": 512}
    config["evaluation"]["memory"] |= {"max_new_tokens": 4}
    config["evaluation"]["latency"] |= {"input_len": 8, "output_len": 4, "warmup": 1, "iterations": 2}
    return config


def write_config(config: dict, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


class Run(NamedTuple):
    """A finished run: its copies of the workflow, the stand-in and the config, and the directory in which it ran."""

    workflow: Path
    standin: Path
    config: Path
    directory: Path

    def snakemake(self, *arguments: object, **options) -> subprocess.CompletedProcess:
        profile = ["--profile", "profiles/demo", "--configfile", self.config, "--directory", self.directory]
        return snakemake(*profile, *arguments, workflow=self.workflow, **options)
