"""The reasons of failed jobs, from the logs that real Snakemake runs leave."""

import subprocess
import sys

from int4_qat.system import failures

SNAKEFILE = """
rule all:
    input: "ends", "later", "waits", "killed"

rule ends:
    output: "ends"
    log: "logs/ends.log"
    shell: "printf '1%%\\r2%%\\nerror: rows: expected 3, found 2\\n\\n' > {log}; exit 1"

rule later:
    output: "later"
    log: "logs/later.log"
    shell: "echo 'error: not yet' > {log}; test -e tried && touch {output} || {{ touch tried; exit 1; }}"

rule killed:
    output: "killed"
    log: "logs/killed.log"
    shell: "printf 'loading\\n  1%%|#   | 1/9\\r  2%%|#   | 2/9' > {log}; kill -9 $$"

rule waits:
    output: "waits"
    log: "logs/waits.log"
    shell: "exit 1"
"""


def test_each_job_that_failed_for_good_has_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Snakemake names logs relative to its folder
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    words = ["--cores", "1", "--keep-going", "--retries", "1"]
    run = subprocess.run([sys.executable, "-m", "snakemake", *words], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    (log,) = (tmp_path / ".snakemake" / "log").iterdir()
    assert sorted(failures.reasons(log)) == [
        "ends: error: rows: expected 3, found 2 (logs/ends.log)",
        "killed: loading (logs/killed.log)",
        "waits: no output (logs/waits.log)",
    ]
