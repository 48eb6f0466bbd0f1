"""The example of docs/data.md works as it is shown: the commands that write the files, the config, and the checks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import SCHEMA, resolved
from int4_qat.config import workflow_config
from programs import ROOT

EXAMPLE = (ROOT / "docs" / "data.md").read_text().partition("\n## An example\n")[2]
PROGRAMS = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder in which the example's files have been written."""
    folder = tmp_path_factory.mktemp("example")
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", EXAMPLE, re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-euc", commands], cwd=folder, env=PROGRAMS, check=True)
    return folder


def test_the_config_is_valid(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", EXAMPLE, re.MULTILINE | re.DOTALL)
    (folder / "mine.yaml").write_text(shown)
    config = resolved(folder / "mine.yaml")
    assert workflow_config.problems(config, SCHEMA) == []
    assert config["evaluation"]["questions"][0]["source"] == "mine/test.parquet"


def test_the_files_pass_the_checks(folder, tmp_path):
    commands = re.findall(r"^    (python .*)$", EXAMPLE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        here = command.replace("scripts/", f"{ROOT}/scripts/").replace("/tmp/checked", str(tmp_path))
        subprocess.run(["bash", "-euc", here], cwd=folder, env=PROGRAMS, check=True)
    assert json.loads((tmp_path / "mmlu" / "report.json").read_text())["splits"]["auxiliary_train"]["rows"] == 1
    assert json.loads((tmp_path / "own" / "report.json").read_text())["splits"]["test"]["rows"] == 2
