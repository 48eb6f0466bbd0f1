"""Test failures on one machine: nothing that is incomplete counts, and nothing that is complete is lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from programs import ROOT, quantize_options, run_script
from workflows import command, planned, write_config


@pytest.fixture
def copied_run(small_run, tmp_path):
    """Return the finished run, copied to a folder of its own, where a test may damage it."""
    return small_run._replace(directory=shutil.copytree(small_run.directory, tmp_path / "directory", symlinks=True))


def test_a_variant_that_fails_leaves_the_others_running(copied_run, tmp_path):
    lost = copied_run.directory / "results/demo/base-bf16/latency.json"
    lost.unlink()
    config = yaml.safe_load(copied_run.config.read_text())
    config["variants"].append("broken-int4")
    config["finetune"]["arms"]["broken"] = {"quantization": None, "max_seq_length": 8}
    result = copied_run.snakemake("--configfile", write_config(config, tmp_path / "config.yaml"))
    assert result.returncode == 1
    (last,) = [line for line in result.stderr.splitlines()[-6:] if line.startswith("finetune: error: ")]
    assert "max_seq_length 8" in last
    assert last.endswith(" (logs/demo/finetune_broken.log)")
    assert lost.exists()
    config["finetune"]["arms"]["broken"] = {"quantization": None}
    result = copied_run.snakemake("--dry-run", "--configfile", write_config(config, tmp_path / "config.yaml"))
    chain = ["finetune", "merge", "quantize", "check_parity"]
    chain += ["record_hidden_states", "evaluate_divergence"]
    chain += ["evaluate_mmlu", "gather_mmlu", "measure_memory", "measure_latency", "report_costs", "summarize"]
    evidence = ["plot_results", "model_card", "record_provenance", "render_pages"]
    assert planned(result) == dict.fromkeys([*chain, *evidence], 1)


def test_two_runs_in_one_folder_are_refused(copied_run):
    for measured in ("base-bf16", "base-int4", "qat-int4"):  # jobs that take longer than the second run's planning
        (copied_run.directory / "results/demo" / measured / "memory.json").unlink()
    options = ["--profile", "profiles/demo", "--configfile", copied_run.config, "--directory", copied_run.directory]
    first = subprocess.Popen(
        command(copied_run.workflow, *options),
        cwd=copied_run.workflow,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(copied_run.directory.glob(".snakemake/locks/*")):
        time.sleep(0.05)
    second = copied_run.snakemake()
    assert second.returncode == 1
    assert "cannot be locked" in second.stdout + second.stderr
    assert first.wait(timeout=300) == 0


def test_half_a_result_is_an_error(copied_run):
    report = copied_run.directory / "results/demo/qat-int4/latency.json"
    report.write_text(report.read_text()[:40])
    (copied_run.directory / "results/demo/summary.json").unlink()
    result = copied_run.snakemake("--rerun-triggers", "mtime")
    assert result.returncode == 1
    log = (copied_run.directory / "logs/demo/summarize.log").read_text()
    assert log.startswith("error: results/demo/qat-int4/latency.json: expected valid JSON")
    assert not (copied_run.directory / "results/demo/summary.json").exists()


@pytest.mark.parametrize("program", ["merge", "quantize"])
def test_a_truncated_shard_is_an_error(copied_run, tmp_path, program):
    model = shutil.copytree(copied_run.directory / "results/demo/lora-bf16/checkpoint", tmp_path / "model")
    shard = model / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    adapter = copied_run.directory / "results/demo/qat/adapter"
    options = {
        "merge": ["--model", model, "--adapter", adapter],
        "quantize": ["--checkpoint", model, *quantize_options()],
    }
    result = run_script(program, *options[program], "--output", tmp_path / "output")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: {shard}: ")
    assert not (tmp_path / "output").exists()


def test_a_full_disk_leaves_nothing_that_counts(copied_run, tmp_path):
    """A limit on the size of files takes the place of a full disk, so writing fails in the middle of a shard."""
    checkpoint = copied_run.directory / "results/demo/lora-bf16/checkpoint"
    paths = ["--checkpoint", checkpoint, "--output", tmp_path / "output"]
    result = run_script(
        *("quantize", *paths, *quantize_options()),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert result.returncode != 0
    assert list(tmp_path.iterdir()) == [copied_run.directory]


@pytest.fixture
def claim(tmp_path):
    """Return a function that starts a program, which claims a GPU, prints its number and holds it until told to end."""
    program = (
        "import os; from int4_qat.system import devices; devices.claim('cuda'); "
        "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"
    )
    own = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT / "scripts")}
    inherited = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}

    def start(visible, **environment):
        environment = inherited | own | {"CUDA_VISIBLE_DEVICES": visible} | environment
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, **pipes)

    return start


@pytest.mark.parametrize("allocation", [{}, {"SLURM_JOB_ID": "7"}], ids=["box", "slurm"])
def test_jobs_take_different_gpus(claim, allocation):
    started = [claim("3,5", **allocation) for _ in range(2)]
    assert sorted(process.stdout.readline().strip() for process in started) == ["3", "5"]
    _, error = claim("3,5", **allocation).communicate()
    assert "expected a free GPU, found 0 free among 3,5" in error
    for process in started:
        process.communicate("\n")
    assert claim("3,5", **allocation).communicate("\n")[0].strip() == "3"


def test_a_slurm_job_with_one_gpu_has_it_to_itself(claim):
    """Each such job sees its GPU as number 0."""
    started = [claim("0", SLURM_JOB_ID=job) for job in ("7", "8")]
    assert [process.stdout.readline().strip() for process in started] == ["0", "0"]
    for process in started:
        process.communicate("\n")


def test_costs_are_summed_by_stage(small_run):
    costs = json.loads((small_run.directory / "results/demo/costs.json").read_text())
    stages = {stage["stage"]: stage for stage in costs["stages"]}
    jobs = {"finetune": 2, "merge": 2, "calibrate": 1, "quantize": 4, "evaluate_mmlu": 6}
    assert {stage: stages[stage]["jobs"] for stage in jobs} == jobs
    assert stages["finetune"]["hours"] > 0
    assert costs["total"]["gpu_hours"] == 0
