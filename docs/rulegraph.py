"""Draw the rule graph of config.yaml, as docs/rulegraph.svg and as the diagram in README.md: `make dag`.

python docs/rulegraph.py
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DIAGRAM = re.compile(r"(?<=^```mermaid\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def main() -> None:
    if not shutil.which("dot"):
        sys.exit("dot: expected graphviz, found none on the PATH; its package is called graphviz")
    svg = ROOT / "docs" / "rulegraph.svg"
    subprocess.run(["dot", "-Tsvg", "-o", svg], input=rulegraph("dot"), text=True, check=True)
    README.write_text(DIAGRAM.sub(mermaid(), README.read_text()))


def mermaid() -> str:
    """The edges by rule name, sorted: a diff shows what changed."""
    text = rulegraph("mermaid-js")
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", text))
    edges = sorted((names[source], names[target]) for source, target in re.findall(r"(id\d+) --> (id\d+)", text))
    return "flowchart TB\n" + "".join(f"  {source} --> {target}\n" for source, target in edges)


def rulegraph(form: str) -> str:
    """What Snakemake draws; its edges come from sets, and would come in another order each time."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", form]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
