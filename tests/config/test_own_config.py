"""The configs that the README and docs/config.md show are valid and complete."""

import os
import re

import pytest
import yaml

from configs import CARD, SCHEMA, resolved
from int4_qat.config import workflow_config
from programs import ROOT
from workflows import planned, snakemake

CPU = re.compile(r"^```yaml\n(device: cpu.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^```yaml\n(quantizations:.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^```yaml\n(models:.*?)^```$", re.MULTILINE | re.DOTALL)


def test_ten_lines_are_a_config_for_another_model(tmp_path):
    (shown,) = SHOWN.findall((ROOT / "README.md").read_text())
    assert len(shown.splitlines()) == 10
    (tmp_path / "mine.yaml").write_text(shown)
    (tmp_path / "models" / "my-model").mkdir(parents=True)
    options = ["--configfile", tmp_path / "mine.yaml", "--directory", tmp_path / "run", "--printshellcmds"]
    result = snakemake("--dry-run", *options, env=os.environ | {"HOME": str(tmp_path)})
    jobs = planned(result)
    assert (jobs["download_model"], jobs["finetune"], jobs["evaluate_mmlu"]) == (1, 3, len(CARD["variants"]))
    assert "evaluate_chartqa" not in jobs
    assert f"--source={tmp_path}/models/my-model " in result.stdout.replace("'", "")
    mark = yaml.safe_load(shown)["finetune"]["response_part"]
    assert f'"response_part": "{mark.strip()}' in result.stdout
    assert "gemma" not in result.stdout


def test_what_a_cpu_takes_is_a_config(tmp_path):
    (shown,) = CPU.findall((ROOT / "docs" / "config.md").read_text())
    config = resolved_with(tmp_path, shown)
    assert workflow_config.problems(config, SCHEMA) == []
    assert (config["device"], config["evaluation"]["serving"]) == ("cpu", None)


def test_a_symmetric_quantization_beside_the_cards(tmp_path):
    (shown,) = TABLE.findall((ROOT / "README.md").read_text())
    config = resolved_with(tmp_path, shown)
    assert workflow_config.problems(config, SCHEMA) == []
    assert config["quantizations"]["int4"] == CARD["quantizations"]["int4"]
    assert {"base-sym4", "lora-sym4"} <= set(config["variants"])


@pytest.mark.parametrize("page", ["README.md", "docs/config.md"])
def test_a_config_that_is_shown_with_variants_publishes_one_of_them(page):
    """Each block of a page that replaces the variants also publishes one of them, so that it is not refused."""
    blocks = re.split(r"\n(?:```\w*\n|\n(?! ))", (ROOT / page).read_text())
    shown = [block for block in blocks if re.search(r"^ *variants: \[", block, re.MULTILINE)]
    assert len(shown) >= 2
    for block in shown:
        published = yaml.safe_load(re.search(r"^ *publish: (.*)$", block, re.MULTILINE)[1].partition(" #")[0])[
            "variant"
        ]
        assert published in re.search(r"^ *variants: \[(.*?)\]", block, re.MULTILINE)[1].split(", ")


def resolved_with(folder, text):
    """Return the config of a run with a config file of the given content."""
    path = folder / "mine.yaml"
    path.write_text(text)
    return resolved(path)
