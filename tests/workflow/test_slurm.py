"""Test `snakemake --profile slurm` on a real Slurm: the resources that jobs request, and what survives interruptions.

The cluster is this machine, with H100s that are links to /dev/null. A stand-in for conda makes the tests' own
environment the environment of every rule.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict

import pandas as pd
import psutil
import pytest
import yaml

from programs import ROOT, run_script
from workflows import Run, command, copy_workflow, small_config, write_config

GPU_RULES = {"finetune", "check_parity", "evaluate_mmlu", "measure_memory", "measure_latency"}
GPU_RULES |= {"record_hidden_states", "evaluate_divergence"}
CPU_RULES = {"check_contamination", "download_mmlu_train", "download_mmlu", "download_model", "format_mmlu"}
CPU_RULES |= {"merge", "quantize", "summarize", "download_text", "check_texts", "plot_results", "record_provenance"}
VARIANTS = ["base-bf16", "base-int4", "qat-int4"]
LOCAL_RULES = {"link_base", "gather_mmlu", "report_costs"}
# The sizes fit two cores in place of a cluster, and the queue is polled at short intervals.
SIZES = ["--jobs", 2, "--set-threads", *(f"{rule}=1" for rule in sorted(GPU_RULES | {"merge", "quantize"}))]
POLLING = ["--slurm-init-seconds-before-status-checks", 1, "--seconds-between-status-checks", 1, "--latency-wait", 5]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("slurm")]


class Cluster(Run):
    """A run through Slurm; Snakemake finds the profile by its name alone, as after `make setup`."""

    def arguments(self, *arguments):
        return [
            "--profile",
            "slurm",
            *SIZES,
            *POLLING,
            "--configfile",
            self.config,
            "--directory",
            self.directory,
            *self.environments,
            *arguments,
        ]

    @property
    def environments(self):
        """Return the option that gives all directories of a workflow the same environments.

        With an environment of its own, a copied directory would run every job again.
        """
        return ["--conda-prefix", self.workflow.parent / "environments"]

    @property
    def profiles(self):
        """Return the user's folder of profiles, which is beside the config."""
        folder = self.config.parent / "settings" / "snakemake"
        if not folder.exists():
            shutil.copytree(self.workflow / "profiles", folder)
        return folder

    @property
    def environment(self):
        home = self.profiles.parent
        if not (home / "conda").exists():
            shutil.copytree(ROOT / "tests" / "shims" / "conda-shim", home / "conda")
        path = f"{home / 'conda' / 'bin'}:{os.environ['PATH']}"
        return os.environ | {"XDG_CONFIG_HOME": str(home), "PATH": path, "CONDA_SHIM_ENVIRONMENT": sys.prefix}

    def command(self, *arguments):
        # Slurm's plugin does not quote the path of Python, and the path of a clone may contain a space
        environment = self.config.parent / "environment"
        if not environment.exists():
            environment.symlink_to(sys.prefix)
        return [str(environment / "bin" / "python"), *command(self.workflow, *self.arguments(*arguments))[1:]]

    def snakemake(self, *arguments):
        options = {"cwd": self.workflow, "env": self.environment, "capture_output": True, "text": True}
        return subprocess.run(self.command(*arguments), **options)

    def start(self, *arguments):
        # If pytest is a background job of a shell, it ignores SIGINT, and so would the processes that it starts.
        hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        options = {"cwd": self.workflow, "env": self.environment, "preexec_fn": hear}
        line = self.command(*arguments)
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def new_cluster(folder, standin, **finetune):
    folder.mkdir(exist_ok=True)
    config = small_config(standin) | {"variants": VARIANTS}
    config["finetune"] |= finetune
    path = write_config(config, folder / "config.yaml")
    return Cluster(copy_workflow(folder / "workflow"), standin, path, folder / "directory")


def jobs():
    """Return every job that Slurm knows, by rule, as the fields that scontrol shows."""
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True).stdout
    by_rule = defaultdict(list)
    for line in shown.splitlines():
        fields = dict(part.partition("=")[::2] for part in line.split() if "=" in part)
        if match := re.match(r"rule_([a-z_]+?)(_wildcards|$)", fields.get("Comment", "")):
            by_rule[match[1]].append(fields)
    return by_rule


def new_jobs(before):
    known = {job["JobId"] for found in before.values() for job in found}
    return {
        rule: fresh for rule, found in jobs().items() if (fresh := [job for job in found if job["JobId"] not in known])
    }


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def adapter(run, arm="qat"):
    return digest(run.directory / f"results/demo/{arm}/adapter/adapter_model.safetensors")


def wait_for(condition, process=None, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        if process is not None and process.poll() is not None:
            pytest.fail(process.stdout.read().decode()[-3000:])
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def cluster_run(untrained, tmp_path_factory):
    """Run the whole small chain through Slurm, and return the run and its jobs."""
    run = new_cluster(tmp_path_factory.mktemp("cluster"), untrained)
    before = jobs()
    result = run.snakemake()
    assert result.returncode == 0, result.stderr[-5000:]
    return run, new_jobs(before)


def test_gpu_jobs_get_one_h100_and_cpu_jobs_none(cluster_run):
    found = cluster_run[1]
    assert found.keys() == GPU_RULES | CPU_RULES
    for rule, rule_jobs in found.items():
        for job in rule_jobs:
            assert job["JobState"] == "COMPLETED"
            assert job["Partition"] == ("h100" if rule in GPU_RULES else "cpu")
            assert job.get("TresPerJob") == ("gres:gpu:h100:1" if rule in GPU_RULES else None)
            assert (job["NumNodes"], job["NumCPUs"]) == ("1", "8" if rule in GPU_RULES else "1")


def first_attempt(expression):
    """Return the value that Snakemake gives an expression of the profile at the first attempt."""
    return eval(expression, {"attempt": 1, "min": min})


def memory_of(job):
    """Return the megabytes of a job, which Slurm writes as 8000M or 62.50G."""
    number, unit = re.search(r"mem=([\d.]+)([MG]),", job["TRES"]).groups()
    return float(number) * {"M": 1, "G": 1024}[unit]


def test_memory_and_time_are_the_profiles(cluster_run):
    run, found = cluster_run
    profile = yaml.safe_load((run.workflow / "profiles" / "slurm" / "config.yaml").read_text())
    for rule, rule_jobs in found.items():
        asked = profile["default-resources"] | profile["set-resources"].get(rule, {})
        for job in rule_jobs:
            minutes, of_cpu = first_attempt(asked["runtime"]), asked.get("mem_mb_per_cpu")
            megabytes = first_attempt(of_cpu or asked["mem_mb"]) * (int(job["NumCPUs"]) if of_cpu else 1)
            assert memory_of(job) == megabytes, job
            hours, rest = divmod(minutes, 60)
            assert job["TimeLimit"] == f"{hours:02}:{rest:02}:00"
            assert job["Account"] == asked["slurm_account"]


def test_a_training_on_two_gpus_is_one_job_on_one_node(cluster_run, tmp_path):
    """The job gets cores and memory in proportion, and its losses are those of one GPU."""
    run = to_be_trained(cluster_run[0], tmp_path)
    run = run._replace(config=shutil.copy(run.config, tmp_path / "config.yaml"))
    path = run.profiles / "slurm" / "config.yaml"
    profile = yaml.safe_load(path.read_text())
    profile["set-resources"]["finetune"]["gpu"] = 2
    path.write_text(yaml.safe_dump(profile))
    before = jobs()
    result = run.snakemake("results/demo/qat/adapter")
    assert result.returncode == 0, result.stderr[-3000:]
    (job,) = new_jobs(before)["finetune"]
    assert (job["NumNodes"], job["NumCPUs"], job["TresPerJob"]) == ("1", "16", "gres:gpu:h100:2")
    assert memory_of(job) == 128_000, job["TRES"]
    one, two = (pd.read_csv(each.directory / "results/demo/qat/training.csv") for each in (cluster_run[0], run))
    assert two["loss"].tolist() == pytest.approx(one["loss"].tolist(), rel=1e-4)


def test_the_cluster_gives_what_one_machine_gives(cluster_run, small_run):
    """The adapters, the weights of each variant, and its score of each question and each window have the same bytes."""

    def results(run):
        files = ("checkpoint/model.safetensors", "mmlu_samples.parquet", "divergence_samples.parquet")
        folder = run.directory / "results" / "demo"
        return {(name, file): digest(folder / name / file) for name in VARIANTS for file in files}

    assert results(cluster_run[0]) == results(small_run)
    assert adapter(cluster_run[0]) == adapter(small_run)


@pytest.fixture(scope="module")
def long_training(untrained, tmp_path_factory):
    """Run a training that is long enough to be interrupted, and return the run, its target and the adapter's hash.

    It does not go through Slurm.
    """
    run = new_cluster(tmp_path_factory.mktemp("long"), untrained, max_steps=80, save_steps=1000)
    target = "results/demo/qat/adapter"
    result = Run.snakemake(run, target, "--sdm", "conda", *run.environments, env=run.environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return run, target, adapter(run)


def to_be_trained(run, folder):
    """Return a copy of the run without its training, but with everything that the training needs."""
    directory = shutil.copytree(run.directory, folder / "directory", symlinks=True)
    shutil.rmtree(directory / "results/demo/qat")
    log_of_training(directory).unlink()
    return run._replace(directory=directory)


def log_of_training(directory):
    return directory / "logs/demo/finetune_qat.log"


def training_steps(run):
    log = log_of_training(run.directory)
    steps = re.findall(r"(\d+)/80 \[", log.read_text()) if log.exists() else []
    return int(steps[-1]) if steps else 0


@pytest.mark.parametrize(
    "interruption",
    [
        ["scancel"],
        ["scontrol", "requeue"],
    ],
    ids=lambda words: words[-1],
)
def test_a_preempted_training_saves_at_once_and_goes_on(long_training, tmp_path, interruption):
    uninterrupted, target, expected = long_training
    run = to_be_trained(uninterrupted, tmp_path)
    before = jobs()
    process = run.start(target)
    wait_for(lambda: training_steps(run) > 5, process)
    (job,) = [job for job in new_jobs(before)["finetune"] if job["JobState"] == "RUNNING"]
    subprocess.run([*interruption, job["JobId"]], check=True)
    checkpoints = run.directory / "results/demo/qat/checkpoints"
    wait_for(lambda: list(checkpoints.glob("checkpoint-*/whole")), process)
    if "requeue" in interruption:
        # Slurm would hold a requeued job back for two minutes
        wait_for(lambda: new_jobs(before)["finetune"][0]["JobState"] == "PENDING", process)
        subprocess.run(["scontrol", "update", f"JobId={job['JobId']}", "StartTime=now"], check=True)
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output[-3000:]
    assert "resuming from " in log_of_training(run.directory).read_text()
    assert adapter(run) == expected
    assert not checkpoints.exists()


def test_a_training_that_is_killed_goes_on_from_its_checkpoint(long_training, tmp_path):
    uninterrupted, target, expected = long_training
    config = yaml.safe_load(uninterrupted.config.read_text())
    config["finetune"]["save_steps"] = 10
    path = write_config(config, tmp_path / "config.yaml")
    run = to_be_trained(uninterrupted, tmp_path)._replace(config=path)
    process = run.start(target)
    checkpoints = run.directory / "results/demo/qat/checkpoints"
    wait_for(lambda: list(checkpoints.glob("checkpoint-*/whole")), process)
    for found in psutil.process_iter(["cmdline"]):
        if found.info["cmdline"][1:2] == [str(run.workflow / "scripts" / "finetune.py")]:
            found.kill()
    output = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, output[-3000:]
    assert "resuming from " in log_of_training(run.directory).read_text()
    assert adapter(run) == expected


def test_a_job_over_its_memory_is_given_more(long_training, tmp_path):
    run = to_be_trained(long_training[0], tmp_path)
    before = jobs()
    result = run.snakemake("results/demo/base-int4/checkpoint", "--set-resources", "quantize:mem_mb=400*attempt**3")
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = sorted(new_jobs(before)["quantize"], key=lambda job: int(job["JobId"]))
    assert (first["JobState"], second["JobState"]) == ("FAILED", "COMPLETED")
    assert ("mem=400M," in first["TRES"], "mem=3200M," in second["TRES"]) == (True, True)
    log = run.directory / ".snakemake/slurm_logs/rule_quantize/demo_base-int4_checkpoint" / f"{first['JobId']}.log"
    assert "Exceeded job memory limit" in log.read_text()
    costs = costs_of(run, "benchmarks/quantize/demo_base-int4_checkpoint.tsv")
    (stage,) = costs["stages"]
    elapsed = accounted_seconds(first["JobId"])
    assert elapsed > 0
    assert stage["unfinished_hours"] == pytest.approx(elapsed / 3600)


def accounted_seconds(job):
    shown = subprocess.run(["sacct", "-nPXj", job, "-o", "Elapsed"], capture_output=True, text=True, check=True).stdout
    hours, minutes, seconds = map(int, shown.split(":"))
    return 3600 * hours + 60 * minutes + seconds


def costs_of(run, *records):
    """Return the costs that report_costs computes from some records, when it is called in the folder of the run."""
    files = ["--json", "costs.json", "--csv", "costs.csv"]
    result = run_script("report_costs", "--records", *records, *files, cwd=run.directory)
    assert result.returncode == 0, result.stderr
    return json.loads((run.directory / "costs.json").read_text())


def test_a_job_that_failed_is_told_at_the_end(long_training, tmp_path):
    config = yaml.safe_load(long_training[0].config.read_text())
    config["finetune"]["max_seq_length"] = 8
    path = write_config(config, tmp_path / "config.yaml")
    run = to_be_trained(long_training[0], tmp_path)._replace(config=path)
    result = run.snakemake("--retries", 0, "--until", "finetune")
    assert result.returncode == 1
    told = [line for line in result.stderr.splitlines()[-8:] if line.startswith("finetune: ")]
    assert told
    for line in told:
        assert re.match(r"finetune: SLURM-job '\d+' failed, SLURM status is: 'FAILED'; error: ", line)
        assert line.endswith(".log)")


def test_ctrl_c_cancels_the_jobs(long_training, tmp_path):
    run = to_be_trained(long_training[0], tmp_path)
    before = jobs()
    process = run.start(long_training[1])
    wait_for(lambda: training_steps(run) > 0, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0
    wait_for(lambda: new_jobs(before)["finetune"][0]["JobState"] == "CANCELLED")
