"""Draw the flow of config.yaml, as docs/rulegraph.svg and as the diagram in README.md: `make dag`.

Snakemake's rule graph without what follows from the rest: an edge whose ends a longer path joins, one from a rule to
itself, and the rules that only keep accounts. `snakemake --rulegraph` shows all of it.

    python docs/rulegraph.py
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import networkx

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DIAGRAM = re.compile(r"(?<=^```mermaid\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
ACCOUNTS = ("report_costs", "record_provenance")
STYLE = """
    graph [bgcolor=transparent]
    node [shape=box style="rounded,filled" fillcolor=white color="#0072B2" fontname=sans]
    edge [color="#7a7a7a"]
"""


def main() -> None:
    if not shutil.which("dot"):
        sys.exit("dot: expected graphviz, found none on the PATH; its package is called graphviz")
    edges = flow()
    drawing = f"digraph {{ {STYLE} {' '.join(f'{source} -> {target}' for source, target in edges)} }}"
    svg = ROOT / "docs" / "rulegraph.svg"
    subprocess.run(["dot", "-Tsvg", "-o", svg], input=drawing, text=True, check=True)
    README.write_text(DIAGRAM.sub(mermaid(edges), README.read_text()))


def flow() -> list[tuple[str, str]]:
    """Return the edges by rule name, sorted, so that a diff shows what changed."""
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "mermaid-js"]
    text = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", text))
    graph = networkx.DiGraph(
        (names[source], names[target]) for source, target in re.findall(r"(id\d+) --> (id\d+)", text)
    )
    graph.remove_nodes_from(ACCOUNTS)
    graph.remove_edges_from(list(networkx.selfloop_edges(graph)))  # the base's states, which those of an arm need
    return sorted(networkx.transitive_reduction(graph).edges)


def mermaid(edges: list[tuple[str, str]]) -> str:
    """Return a diagram that a README can hold."""
    return "flowchart TB\n" + "".join(f"  {source} --> {target}\n" for source, target in edges)


if __name__ == "__main__":
    main()
