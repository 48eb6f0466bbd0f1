"""Write divergence.json and the table of its windows, for both programs that compare a variant with the base."""

import math
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from int4_qat.results.schema.divergence import Divergence, Protocol, Text
from int4_qat.system import files


def make(
    rows: dict[str, list[dict]], protocol: dict[str, Protocol], same_head: bool, int4_path: str | None, device: str
) -> Divergence:
    """Return the content of divergence.json from the rows of windows by text; device is the name of the hardware."""
    return Divergence(
        texts={name: summarize(found) for name, found in rows.items()},
        protocol=protocol,
        same_head=same_head,
        versions={name: version(name) for name in ("transformers", "torch", "torchao")},
        int4_path=int4_path,
        device=device,
    )


def summarize(rows: list[dict]) -> Text:
    """Return the means over all tokens of a text."""
    tokens = sum(row["tokens"] for row in rows)
    mean = {name: math.fsum(row[name] for row in rows) / tokens for name in rows[0] if name not in ("text", "window")}
    return Text(
        tokens=tokens,
        windows=len(rows),
        kl=mean["kl"],
        kl_from_own_bf16=mean.get("kl_from_own_bf16"),
        top1_agreement=mean["same_top1"],
        perplexity=math.exp(mean["loss"]),
        perplexity_of_base=math.exp(mean["base_loss"]),
    )


def write(found: Divergence, rows: dict[str, list[dict]], report: Path, samples: Path) -> None:
    """Write divergence.json and the parquet file with one row per window, and print a line for each text."""
    with files.whole(samples) as unfinished:
        pq.write_table(pa.Table.from_pylist([row for of_text in rows.values() for row in of_text]), unfinished)
    files.write_json(report, found)
    for name, text in found["texts"].items():
        line = f"KL {text['kl']:.4f} nats, top-1 {text['top1_agreement']:.2%}, perplexity {text['perplexity']:.3f}"
        print(f"{name}: {line} ({text['perplexity_of_base']:.3f} of the base), {text['tokens']} tokens")
