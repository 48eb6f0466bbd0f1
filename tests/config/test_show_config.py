"""show_config prints the config that a run would use, and refuses what a run would refuse, in the same words."""

import pytest
import yaml

from configs import CARD, demo_config
from programs import ROOT, run_script
from workflows import snakemake

DEMO = ROOT / "profiles" / "demo" / "demo.yaml"


def test_it_prints_the_default():
    result = run_script("show_config")
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout) == CARD
    assert 'response_part: "<start_of_turn>model\\n"' in result.stdout


def test_it_prints_what_files_and_words_make_of_it(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("finetune: {learning_rate: 5e-3, r: 4}\n")
    result = run_script("show_config", "--configfile", DEMO, mine, "--config", "standin={seed: 7}", "finetune={r: 2}")
    assert result.returncode == 0, result.stderr
    expected = demo_config()
    expected["standin"]["seed"] = 7
    expected["finetune"] |= {"learning_rate": 0.005, "r": 2}
    assert yaml.safe_load(result.stdout) == expected


def test_what_it_prints_is_a_config(tmp_path):
    first = run_script("show_config", "--configfile", DEMO)
    printed = tmp_path / "printed.yaml"
    printed.write_text(first.stdout)
    assert run_script("show_config", "--configfile", printed).stdout == first.stdout


def test_it_says_what_snakemake_says(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("finetune: {max_steps: 0, seed: -1}\nmodels: {m: {source: /no/such/model}}\n")
    result = run_script("show_config", "--configfile", mine)
    assert (result.returncode, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["config error", "finetune.max_steps"],
        ["config error", "finetune.seed"],
    ]
    of_run = snakemake("--dry-run", "--configfile", mine)
    assert [line for line in of_run.stderr.splitlines() if line.startswith("config error")] == lines


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (None, [], "{path}: expected a config file, found none"),
        ("[]", [], "Config file must be given as JSON or YAML with keys at top level."),
        ("a: 1\nb: {", [], "{path}, line 2: expected YAML; expected the node content, but found '<stream end>'"),
        ("a:\n\tb: 1\n", [], "{path}, line 2: expected YAML; found character '\\t' that cannot start any token"),
        ("a: \x07", [], "{path}: expected YAML; unacceptable character #x0007"),
        (b"a: \xff", [], "{path}: expected UTF-8, found byte 0xff at position 3"),
        ("{}", ["--config", "device"], "Config entries have to be defined as name=value pairs."),
    ],
)
def test_what_is_no_config_is_one_line(tmp_path, content, options, expected):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run_script("show_config", "--configfile", path, *options)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected.format(path=path) in line
