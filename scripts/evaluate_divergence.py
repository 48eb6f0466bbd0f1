"""Measure how far a checkpoint's predictions of held-out texts are from the base's: KL, top-1 agreement, perplexity.

The protocol is in int4_qat/evaluation/divergence.py; the texts are those that record_hidden_states let the base read.
With --own-states the same is done against the variant's own weights in bf16: what the quantization alone cost.

    python scripts/evaluate_divergence.py --checkpoint results/demo/qat-int4/checkpoint --dtype float32 \\
        --base results/demo/base-bf16/checkpoint --base-states results/demo/base-bf16/states \\
        --own-states results/demo/qat-bf16/states --output results/demo/qat-int4/divergence.json \\
        --samples results/demo/qat-int4/divergence_samples.parquet
"""

import argparse
import math
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference
from int4_qat.evaluation import divergence, hidden_states
from int4_qat.evaluation.divergence import Logits
from int4_qat.results.schema.divergence import Divergence, Text
from int4_qat.system import devices, errors, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--base", required=True, type=Path, help="folder of the base in bf16")
    parser.add_argument("--base-states", required=True, type=Path, help="folder of record_hidden_states, of the base")
    parser.add_argument("--own-states", type=Path, help="the same of the variant's own weights in bf16")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="divergence.json")
    parser.add_argument("--samples", required=True, type=Path, help="parquet with one row per window")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    dtype = architecture.DTYPES[arguments.dtype]
    texts = hidden_states.paths_of(arguments.base_states)
    stored = {name: hidden_states.metadata_of(path) for name, path in texts.items()}
    model = inference.load_model(arguments.checkpoint, dtype, arguments.device)
    head = divergence.head_digest(model)
    same_head = all(found["head"] == head for found in stored.values())
    base = model if same_head else inference.load_model(arguments.base, dtype, arguments.device)
    rows = []
    for name, path in texts.items():
        own = arguments.own_states and arguments.own_states / path.name
        rows += [{"text": name} | row for row in compare(model, divergence.logits_of(base), path, own)]
    samples = pd.DataFrame(rows)
    report = Divergence(
        texts={name: summarize(samples[samples["text"] == name]) for name in texts},
        protocol={name: found["protocol"] for name, found in stored.items()},
        same_head=same_head,
        versions={name: version(name) for name in ("transformers", "torch", "torchao")},
        int4_path=inference.int4_path(arguments.checkpoint, arguments.device),
        device=devices.name(arguments.device),
    )
    with files.whole(arguments.samples) as unfinished:
        samples.to_parquet(unfinished, index=False)
    files.write_json(arguments.output, report)
    for name, text in report["texts"].items():
        found = f"KL {text['kl']:.4f} nats, top-1 {text['top1_agreement']:.2%}, perplexity {text['perplexity']:.3f}"
        print(f"{name}: {found} ({text['perplexity_of_base']:.3f} of the base), {text['tokens']} tokens")


def compare(model: PreTrainedModel, base: Logits, states: Path, own: Path | None) -> list[dict]:
    """Return a row for each window of a text: the sums over its tokens."""
    logits, references = divergence.logits_of(model), hidden_states.read(states)
    of_own = hidden_states.read(own) if own else None
    windows = [window.tokens.tolist() for window in hidden_states.read(states)]
    rows = []
    for batch in divergence.batches(windows):
        for hidden in divergence.last_hidden_states(model, batch):
            reference = next(references)
            tokens, theirs = (part.to(model.device) for part in reference)
            row = divergence.compare(hidden, logits, theirs, base, tokens)._asdict()
            if of_own is not None:
                ours = next(of_own).hidden.to(model.device)
                row["kl_from_own_bf16"] = divergence.compare(hidden, logits, ours, logits, tokens).kl
            rows.append(row)
    return rows


def summarize(rows: pd.DataFrame) -> Text:
    """Return the means over all tokens of a text."""
    tokens = int(rows["tokens"].sum())
    own = rows.get("kl_from_own_bf16")
    return Text(
        tokens=tokens,
        windows=len(rows),
        kl=float(rows["kl"].sum() / tokens),
        kl_from_own_bf16=None if own is None else float(own.sum() / tokens),
        top1_agreement=float(rows["same_top1"].sum() / tokens),
        perplexity=math.exp(rows["loss"].sum() / tokens),
        perplexity_of_base=math.exp(rows["base_loss"].sum() / tokens),
    )


if __name__ == "__main__":
    errors.run(main)
