"""Test the costs of stages; a fake `sacct`, whose output each test sets, takes the place of Slurm's accounting."""

import json
import os

import pytest

from programs import run_script

RECORD = "s\th:m:s\tmax_rss\n3600\t1:00:00\t2000\n"
# What sacct --units=K prints for a job and its steps: id, state, seconds, peak memory.
FIRST_RUN = "7|COMPLETED|5000|\n7.batch|COMPLETED|5000|90000000K\n"
SECOND_RUN = (
    "11|FAILED|1800|\n11.batch|FAILED|1800|4000000K\n"
    "12|PREEMPTED|900|\n12|COMPLETED|3600|\n12.batch|COMPLETED|3600|2000000K\n"
)


@pytest.fixture
def costs(tmp_path):
    """Return a function that runs report_costs on one job with the logs of three attempts.

    It takes the shell command that sacct runs, and returns the JSON that report_costs writes and what it prints.
    """
    (tmp_path / "benchmarks/finetune").mkdir(parents=True)
    (tmp_path / "benchmarks/finetune/demo_qat.tsv").write_text(RECORD)
    logs = tmp_path / ".snakemake/slurm_logs/rule_finetune/demo_qat"
    logs.mkdir(parents=True)
    for job in (7, 11, 12):
        (logs / f"{job}.log").touch()

    def ask(sacct):
        program = tmp_path / "bin" / "sacct"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{sacct}\n")
        program.chmod(0o755)
        options = ["--records", "benchmarks/finetune/demo_qat.tsv", "--gpu-stages", "finetune=2"]
        environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        outputs = ["--json", "costs.json", "--csv", "costs.csv"]
        result = run_script("report_costs", *options, *outputs, cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stderr
        return json.loads((tmp_path / "costs.json").read_text()), result.stdout

    return ask


def test_a_peak_that_was_not_sampled_is_unknown(tmp_path):
    record = tmp_path / "benchmarks" / "merge" / "demo.tsv"
    record.parent.mkdir(parents=True)
    record.write_text("s\th:m:s\tmax_rss\n2\t0:00:02\tNA\n")
    outputs = ["--json", tmp_path / "costs.json", "--csv", tmp_path / "costs.csv"]
    result = run_script("report_costs", "--records", record, *outputs)
    assert result.returncode == 0, result.stderr
    (stage,) = json.loads((tmp_path / "costs.json").read_text())["stages"]
    assert (stage["jobs"], stage["peak_gb"]) == (1, None)
    assert (tmp_path / "costs.csv").read_text().splitlines()[1].endswith(",")


def test_attempts_since_the_last_success_are_counted(costs):
    found, _ = costs(f"cat <<'END'\n{FIRST_RUN}{SECOND_RUN}END")
    (stage,) = found["stages"]
    assert (stage["jobs"], stage["hours"], stage["gpu_hours"]) == (1, 1.0, 2.0)
    assert stage["unfinished_hours"] == pytest.approx((1800 + 900) / 3600)
    assert stage["peak_gb"] == pytest.approx(4.096)
    assert found["total"]["unfinished_hours"] == pytest.approx(0.75)


def test_a_peak_that_only_slurm_knows_counts(costs, tmp_path):
    (tmp_path / "benchmarks/finetune/demo_qat.tsv").write_text(RECORD.replace("2000", "NA"))
    found, _ = costs(f"cat <<'END'\n{FIRST_RUN}{SECOND_RUN}END")
    assert found["stages"][0]["peak_gb"] == pytest.approx(4.096)


@pytest.mark.parametrize(
    ("sacct", "reason"),
    [
        ("true", "sacct knows none of the jobs"),
        ("echo first >&2; echo no database >&2; exit 1", "no database"),
    ],
)
def test_without_accounts_it_says_so(costs, sacct, reason):
    found, printed = costs(sacct)
    assert f"Slurm has no accounts of them: {reason}\n" in printed
    assert found["total"]["unfinished_hours"] is None
    assert "unfinished_hours" not in found["stages"][0]
    assert found["stages"][0]["peak_gb"] == pytest.approx(2000 * 1.048576e-3)  # Snakemake records MiB
