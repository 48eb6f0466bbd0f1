"""Measure how far a checkpoint's predictions of held-out texts are from the base's: KL, top-1 agreement, perplexity.

The protocol is in int4_qat/evaluation/divergence.py; the texts, and the dtype, are those in which
record_hidden_states let the base read. What it recorded of the variant's own weights in bf16 is the forward pass of a
variant in bf16, which is not run again; a quantized one is compared with it too: what the quantization alone cost.

    python scripts/evaluate_divergence.py --checkpoint results/demo/qat-int4/checkpoint \\
        --base results/demo/base-bf16/checkpoint --base-states results/demo/base-bf16/states \\
        --own results/demo/qat-bf16/checkpoint --own-states results/demo/qat-bf16/states \\
        --output results/demo/qat-int4/divergence.json --samples results/demo/qat-int4/divergence_samples.parquet
"""

import argparse
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference
from int4_qat.evaluation import divergence, heads, hidden_states
from int4_qat.evaluation.divergence import Reading
from int4_qat.evaluation.heads import Head
from int4_qat.evaluation.hidden_states import Recorded
from int4_qat.results.schema.divergence import Divergence, Text
from int4_qat.system import devices, errors, files
from int4_qat.system.errors import InputError


class Compared(NamedTuple):
    """A variant, what makes its logits, and what makes those of the states that it is compared with."""

    model: PreTrainedModel | None  # None of a variant in bf16: its states are recorded
    head: Head
    base: Head
    own: Head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--base", required=True, type=Path, help="folder of the base in bf16")
    parser.add_argument("--base-states", required=True, type=Path, help="folder of record_hidden_states, of the base")
    parser.add_argument("--own", required=True, type=Path, help="folder of the variant's own weights in bf16")
    parser.add_argument("--own-states", required=True, type=Path, help="folder of record_hidden_states, of --own")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="divergence.json")
    parser.add_argument("--samples", required=True, type=Path, help="parquet with one row per window")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    base, own = (hidden_states.recorded(path) for path in (arguments.base_states, arguments.own_states))
    hidden_states.refuse_differences(base, own)
    compared = load(arguments, next(iter(base.values())), next(iter(own.values())))
    rows = {name: compare(compared, base[name], own[name], arguments.device) for name in base}
    report = Divergence(
        texts={name: summarize(found) for name, found in rows.items()},
        protocol={name: found.protocol for name, found in base.items()},
        same_head=compared.head is compared.base is compared.own,
        versions={name: version(name) for name in ("transformers", "torch", "torchao")},
        int4_path=inference.int4_path(arguments.checkpoint, arguments.device),
        device=devices.name(arguments.device),
    )
    with files.whole(arguments.samples) as unfinished:
        pq.write_table(pa.Table.from_pylist([row for found in rows.values() for row in found]), unfinished)
    files.write_json(arguments.output, report)
    for name, text in report["texts"].items():
        found = f"KL {text['kl']:.4f} nats, top-1 {text['top1_agreement']:.2%}, perplexity {text['perplexity']:.3f}"
        print(f"{name}: {found} ({text['perplexity_of_base']:.3f} of the base), {text['tokens']} tokens")


def load(arguments: argparse.Namespace, base: Recorded, own: Recorded) -> Compared:
    """Return a variant and the heads: the variant's own, unless what it is compared with was recorded with another.

    Raise InputError if those are of another vocabulary, or a variant in bf16 has other weights of its own.
    """
    dtype, device = architecture.DTYPES[base.protocol["dtype"]], arguments.device
    if inference.is_int4(arguments.checkpoint):
        model = inference.load_model(arguments.checkpoint, dtype, device)
        head = Head(model)
        digest = head.digest()
    elif arguments.own.resolve() != arguments.checkpoint.resolve():
        raise InputError(f"--own: expected {arguments.checkpoint}, which is in bf16 itself, found {arguments.own}")
    else:
        model, head, digest = None, heads.load(arguments.checkpoint, dtype, device), own.head
    others = [
        head if recorded.head == digest else heads.load(folder, dtype, device)
        for recorded, folder in ((base, arguments.base), (own, arguments.own))
    ]
    for other, folder in zip(others, (arguments.base, arguments.own), strict=True):
        if other.vocabulary != head.vocabulary:
            expected = f"the vocabulary of {folder}, {other.vocabulary} tokens"
            raise InputError(f"{arguments.checkpoint}: expected {expected}, found {head.vocabulary}")
    return Compared(model, head, *others)


def compare(compared: Compared, base: Recorded, own: Recorded, device: str) -> list[dict]:
    """Return a row for each window of a text: the sums over its tokens."""
    windows = tqdm(base.windows, desc=base.path.stem, unit=" windows", mininterval=1)
    sums = [
        divergence.compare(*each, torch.tensor(window, device=device))
        for window, each in zip(windows, readings(compared, base, own, device), strict=True)
    ]
    return [
        {"text": base.path.stem, "window": index, "tokens": len(base.windows[index]) - 1}
        | each
        | {"same_top1": int(each["same_top1"])}
        for index, each in enumerate(divergence.on_host(sums))
    ]


def readings(
    compared: Compared, base: Recorded, own: Recorded, device: str
) -> Iterator[tuple[Reading, Reading, Reading | None]]:
    """Yield what the variant, the base and, if that is another thing, its own weights in bf16 made of each window."""
    of_model = None if compared.model is None else states(compared.model, base)
    of_own = None if own.path == base.path else hidden_states.read(own, device)
    for hidden in hidden_states.read(base, device):
        reference = Reading(hidden, compared.base)
        ours = reference if of_own is None else Reading(next(of_own), compared.own)
        if of_model is None:
            yield ours, reference, None
        else:
            yield Reading(next(of_model), compared.head), reference, ours


def states(model: PreTrainedModel, text: Recorded) -> Iterator[torch.Tensor]:
    """Yield what a model makes of each window of a text: (tokens, width)."""
    for batch in divergence.batches(text.windows):
        yield from divergence.last_hidden_states(model, batch)


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


if __name__ == "__main__":
    errors.run(main)
