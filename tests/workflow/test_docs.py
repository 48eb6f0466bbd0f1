"""Test that the documents show what the code does."""

import os
import subprocess
import sys

import rulegraph


def test_readme_shows_the_rule_graph_of_the_code():
    shown = rulegraph.DIAGRAM.findall(rulegraph.README.read_text())
    assert shown == [rulegraph.mermaid(rulegraph.flow())], "run `make dag`"


def test_a_missing_graphviz_is_one_line(tmp_path):
    command = [sys.executable, rulegraph.ROOT / "docs" / "rulegraph.py"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": str(tmp_path)})
    assert result.returncode == 1
    assert result.stderr == "dot: expected graphviz, found none on the PATH; its package is called graphviz\n"
