"""Test that paths are quoted wherever YAML, a shell, a pattern or a format string reads them."""

import json
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest
import yaml

from int4_qat.system import scratch
from programs import ROOT, finetune_options, run_script
from workflows import copy_workflow, small_config, snakemake, write_config

NASTY = "n [a]*{b#'q\"%s::x,y=$z&;?é"


@pytest.fixture
def nasty(tmp_path, monkeypatch):
    """Return a folder with special characters in its name, in which scratch files go as well."""
    folder = tmp_path / NASTY
    (folder / "tmp").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def run(name, *arguments):
    result = run_script(name, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.mark.slow
def test_from_the_sources_to_the_int4_scores(untrained, nasty):
    """Programs that pass a path to another library accept any path, also in --directory and TMPDIR."""
    config = small_config(shutil.copytree(untrained, nasty / "standin"))
    config["evaluation"]["mmlu"]["num_fewshot"] = 1
    path, directory = write_config(config, nasty / "config.yaml"), nasty / "run {d}"
    targets = [f"results/demo/{name}.json" for name in ("qat-int4/mmlu", "qat-int4/parity", "base-gptq/memory")]
    result = snakemake(*targets, "--profile", "profiles/demo", "--configfile", path, "--directory", directory)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((directory / targets[0]).read_text())["questions"] == 114


def test_texts_are_read_from_an_odd_folder(untrained, texts, nasty):
    """The named folder is read, and not another one that its name matches as a pattern."""
    (nasty / "x[ab]").mkdir()
    (nasty / "xa").mkdir()
    shutil.copy(texts, nasty / "x[ab]" / "train.parquet")
    pq.write_table(pq.read_table(texts).slice(0, 3), nasty / "xa" / "train.parquet")
    options = finetune_options(untrained, nasty / "x[ab]" / "train.parquet", nasty, max_steps=1, warmup_steps=0)
    run("finetune", *options)
    assert (nasty / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["a b", "50%", "#1", "é"])
def test_a_plain_place_for_scratch_files_is_kept(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
    with scratch.folder() as folder:
        assert folder.parent == tmp_path / name
    assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize("name", ["[a]", "*", "?", "a:b", "a,b", "a=b", "{a}", "'", '"', "$HOME", "a\nb"])
def test_an_odd_one_is_left_for_another_and_that_is_said(tmp_path, monkeypatch, capsys, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
    with scratch.folder() as folder:
        assert str(folder).startswith(("/tmp/", "/var/tmp/"))
    assert (
        capsys.readouterr().out
        == f"TMPDIR: scratch files go to /tmp, since a library would misread {str(tmp_path / name)!r}\n"
    )
    with scratch.plain(tmp_path / name) as path:
        assert path.resolve() == tmp_path / name
        assert scratch.PLAIN.fullmatch(str(path))


@pytest.mark.parametrize("name", ["{b}", "{b,c}", "a{{b}}", "x{1}"])
def test_what_snakemake_takes_for_a_wildcard_is_refused(untrained, tmp_path, name):
    standin = tmp_path / name
    standin.symlink_to(untrained)
    path = write_config(small_config(standin), tmp_path / "config.yaml")
    result = snakemake("--dry-run", "--profile", "profiles/demo", "--configfile", path, "--directory", tmp_path)
    assert result.returncode == 1
    expected = "data.source: expected a path without a name in braces, a wildcard to Snakemake, found"
    assert f"config error: {expected} '{standin}/mmlu'" in result.stderr


def test_the_workflow_lies_in_a_folder_without_braces(tmp_path):
    (tmp_path / "{").mkdir()
    workflow = copy_workflow(tmp_path / "{" / "workflow")
    result = snakemake("--dry-run", "--profile", "profiles/demo", "--directory", tmp_path / "run", workflow=workflow)
    assert result.returncode == 1
    assert f"config error: the workflow's folder: expected a path without braces, found '{workflow}'" in result.stderr


@pytest.mark.parametrize("name", ["n [a]*#'q\"%s::x,y=$z&;é", "-x", "new\nline"])
def test_the_downloads_take_what_is_there(untrained, tmp_path, name):
    """Neither the sources nor the workflow's folder needs a plain path."""
    workflow = tmp_path / name / "workflow"
    workflow.parent.mkdir()
    copy_workflow(workflow)
    standin = shutil.copytree(untrained, tmp_path / name / "standin")
    path = write_config(small_config(standin), tmp_path / name / "config.yaml")
    targets = ["resources/mmlu/report.json", "resources/models/demo"]
    options = ["--profile", "profiles/demo", "--configfile", path, "--directory", tmp_path / name / "run"]
    result = snakemake(*targets, *options, workflow=workflow)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_source_may_begin_with_a_dash(untrained, tmp_path):
    """The source is a path relative to the folder in which the workflow runs."""
    shutil.copytree(untrained, tmp_path / "run" / "-x")
    config = small_config(untrained)
    config["data"]["source"] = "-x/mmlu"
    path = write_config(config, tmp_path / "config.yaml")
    options = ["--profile", "profiles/demo", "--configfile", path, "--directory", tmp_path / "run"]
    result = snakemake("resources/mmlu/report.json", *options)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a: {b}, [c] #d", "%s & ;"])
def test_make_hands_on_the_folder_of_mmlu(tmp_path, name):
    (tmp_path / name).mkdir()
    words = ["MMLU_DIR=" + str(tmp_path / name), "DEMO=printf '%s\\n'"]
    command = ["make", "--silent", "--old-file", ".venv/installed", "demo-mmlu", *words]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    key, _, value = shown.stdout.splitlines()[-1].partition("=")
    assert (key, yaml.safe_load(value)) == ("data", {"source": str(tmp_path / name)})
