"""Test what `make report` and `make why` say of runs that cannot be shown."""

import re
import subprocess

import pytest

from programs import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".venv" / "installed").exists(), reason="`make` would install .venv")


def make(*words):
    return subprocess.run(["make", *map(str, words)], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def unknown(tmp_path):
    """Return a config with a model of which there are no results."""
    (tmp_path / "model").mkdir()
    (tmp_path / "mine.yaml").write_text(f"models: {{never-run: {{source: {tmp_path / 'model'}}}}}\n")
    return ["PROFILE=profiles/demo", f"CONFIGFILE=profiles/demo/demo.yaml {tmp_path / 'mine.yaml'}"]


def test_a_report_of_an_unfinished_run_is_one_line(unknown):
    result = make("report", *unknown)
    line, *_ = result.stderr.splitlines()
    assert result.returncode == 2
    expected = r"results/.*: expected a file of a finished run, found none; make why shows which jobs are left"
    assert re.fullmatch(expected, line), line


def test_why_reads_a_config_of_ones_own(unknown):
    shown = make("why", *unknown).stdout
    assert "download_model: never-run" in shown
    assert "download_model: demo" in shown  # of the other config file


def test_a_run_in_another_folder_is_planned_there(tmp_path):
    assert "make_standin" in make("why", f"DIRECTORY={tmp_path / 'my run'}").stdout
    assert (tmp_path / "my run" / ".snakemake").is_dir()


@pytest.mark.parametrize("target", ["report", "why"])
def test_a_missing_config_is_named(target):
    result = make(target, "CONFIGFILE=/no/such.yaml")
    assert result.returncode == 2
    assert "/no/such.yaml" in result.stderr
