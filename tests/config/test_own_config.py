"""The config for another model that the README shows is all that it takes."""

import os
import re

import yaml

from configs import CARD
from programs import ROOT
from workflows import planned, snakemake

SHOWN = re.compile(r"^```yaml\n(models:.*?)^```$", re.MULTILINE | re.DOTALL)


def test_ten_lines_are_a_config_for_another_model(tmp_path):
    (shown,) = SHOWN.findall((ROOT / "README.md").read_text())
    assert len(shown.splitlines()) == 10
    (tmp_path / "mine.yaml").write_text(shown)
    (tmp_path / "models" / "my-model").mkdir(parents=True)
    options = ["--configfile", tmp_path / "mine.yaml", "--directory", tmp_path / "run", "--printshellcmds"]
    result = snakemake("--dry-run", *options, env=os.environ | {"HOME": str(tmp_path)})
    jobs = planned(result)
    assert (jobs["download_model"], jobs["finetune"], jobs["evaluate_mmlu"]) == (1, 2, len(CARD["variants"]))
    assert "evaluate_chartqa" not in jobs
    assert f"--source={tmp_path}/models/my-model " in result.stdout.replace("'", "")
    mark = yaml.safe_load(shown)["finetune"]["response_part"]
    assert f'"response_part": "{mark.strip()}' in result.stdout
    assert "gemma" not in result.stdout
