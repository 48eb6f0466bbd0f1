"""Test that a training that was killed or stopped ends with the same bytes, and ignores unrelated checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from int4_qat.system.errors import InputError
from int4_qat.training import checkpoints
from programs import INT4, ROOT, finetune_options, run_script, seen


def adapter_bytes(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("target", [pytest.param("base+lora_a", marks=pytest.mark.slow), "merged"])
def test_killed_and_resumed_gives_the_same_bytes(untrained, texts, tmp_path, target):
    whole, killed, changes = tmp_path / "whole", tmp_path / "killed", seen() | {"qat_target": target}
    result = run_script("finetune", *finetune_options(untrained, texts, whole, **changes))
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(whole / "training.csv")
    assert table["step"].tolist() == list(range(1, 13))
    assert not (whole / "checkpoints").exists()
    record = json.loads((whole / "adapter" / "qat.json").read_text())
    assert (record["scheme"], record["target"], record["ignore"]) == (INT4.words, target, [])
    assert list(record["linears"].values()) == [True] * 3 * 7

    command = [sys.executable, str(ROOT / "scripts" / "finetune.py")]
    command += map(str, finetune_options(untrained, texts, killed, **changes))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((killed / "checkpoints").glob("checkpoint-*/whole")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "adapter").exists()
    (checkpoint, *_) = sorted((killed / "checkpoints").glob("checkpoint-*"))
    (killed / "checkpoints" / "checkpoint-11").mkdir()  # cut off while it was being written

    result = run_script("finetune", *finetune_options(untrained, texts, killed, **changes))
    assert result.returncode == 0, result.stderr
    assert int(checkpoint.name.rpartition("-")[2]) < 12
    assert adapter_bytes(killed) == adapter_bytes(whole)
    resumed = pd.read_csv(killed / "training.csv")
    assert resumed["loss"].tolist() == table["loss"].tolist()


def test_a_wrong_path_removes_no_checkpoint(untrained, tmp_path):
    options = finetune_options(untrained, tmp_path / "nowhere.parquet", tmp_path)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-8"
    checkpoint.mkdir(parents=True)
    (checkpoint / "whole").touch()
    (tmp_path / "checkpoints" / "settings.json").write_text("{}")
    result = run_script("finetune", *options)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"error: {tmp_path / 'nowhere.parquet'}: expected a file, found none"
    assert (checkpoint / "whole").exists()


@pytest.mark.slow
def test_a_training_that_was_done_takes_no_step_more(untrained, texts, tmp_path):
    """The first run fails after its last step, when it writes the table.

    The learning rate is constant, so a further step would change the adapter.
    """
    changes = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    whole, stopped = finetune_options(untrained, texts, tmp_path / "whole", **changes), tmp_path / "stopped"
    assert run_script("finetune", *whole).returncode == 0
    stopped.mkdir()
    (stopped / "file").touch()
    again = finetune_options(untrained, texts, stopped, **changes)
    assert run_script("finetune", *again[:-1], stopped / "file" / "training.csv").returncode == 1
    assert (stopped / "checkpoints" / "checkpoint-12").exists()
    result = run_script("finetune", *again)
    assert result.returncode == 0, result.stderr
    assert adapter_bytes(stopped) == adapter_bytes(tmp_path / "whole")
    assert (stopped / "training.csv").read_text().splitlines()[-1].startswith("12,")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="expected checkpoints of finetune, found other files"):
        checkpoints.prepare(tmp_path, {})
    assert (tmp_path / "thesis").exists()


def test_killed_while_old_checkpoints_go_it_can_start_again(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    checkpoints.prepare(folder, {"learning_rate": 1})
    (folder / "checkpoint-8").mkdir()

    def killed(path, **_):
        if path.exists():
            (path / "settings.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.prepare(folder, {"learning_rate": 2})
    checkpoints.prepare(folder, {"learning_rate": 2})
    assert [path.name for path in folder.iterdir()] == ["settings.json"]


def test_killed_before_anything_was_written_it_can_start_again(tmp_path):
    (tmp_path / ".settings.json.unfinished").touch()
    checkpoints.prepare(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_checkpoints_of_other_settings_are_not_used(tmp_path):
    checkpoints.prepare(tmp_path, {"learning_rate": 1})
    assert checkpoints.last_whole(tmp_path) is None
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "whole").touch()
    checkpoints.prepare(tmp_path, {"learning_rate": 1})
    assert checkpoints.last_whole(tmp_path).name == "checkpoint-8"
    checkpoints.prepare(tmp_path, {"learning_rate": 2})
    assert checkpoints.last_whole(tmp_path) is None
