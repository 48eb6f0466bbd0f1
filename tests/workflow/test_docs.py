"""Test that the documents show what the code does."""

import os
import re
import subprocess
import sys

import pytest
import rulegraph

from programs import ROOT, run_script


def test_readme_shows_the_rule_graph_of_the_code():
    shown = rulegraph.DIAGRAM.findall(rulegraph.README.read_text())
    assert shown == [rulegraph.mermaid(rulegraph.flow())], "run `make dag`"


def configs(page, heading):
    """Return the configs that stand in a section of a page."""
    section = (ROOT / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("layers", [["mine"], ["symmetric", "mine"], ["cpu", "mine"]], ids="+".join)
def test_the_configs_for_ones_own_model_are_right(layers, tmp_path):
    shown = dict(zip(("mine", "symmetric"), configs("README.md", "Your own model"), strict=True))
    (shown["cpu"],) = configs("docs/config.md", "On a CPU")
    (tmp_path / "model").mkdir()
    for layer in layers:
        text = shown[layer].replace("~/models/my-model", str(tmp_path / "model"))
        (tmp_path / f"{layer}.yaml").write_text(text)
    result = run_script("show_config", "--configfile", *(tmp_path / f"{layer}.yaml" for layer in layers))
    assert result.returncode == 0, result.stderr


def test_a_missing_graphviz_is_one_line(tmp_path):
    command = [sys.executable, rulegraph.ROOT / "docs" / "rulegraph.py"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": str(tmp_path)})
    assert result.returncode == 1
    assert result.stderr == "dot: expected graphviz, found none on the PATH; its package is called graphviz\n"
