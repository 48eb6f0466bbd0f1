"""Measure how far a quantized model's predictions of held-out texts are from the base's.

int4_qat/evaluation/divergence.py defines the figures and the protocol. The texts and the dtype are those with which
record_hidden_states ran the base. The model is also compared with its own weights in bf16 on the same texts, which
shows the cost of the quantization alone. Models in bf16 are compared where their states are recorded.

    python scripts/evaluate_divergence.py --checkpoint results/demo/qat-int4/checkpoint \\
        --base results/demo/base-bf16/checkpoint --base-states results/demo/base-bf16/states \\
        --own results/demo/qat-bf16/checkpoint --own-states results/demo/qat-bf16/states \\
        --report results/demo/qat-int4/divergence.json --samples results/demo/qat-int4/divergence_samples.parquet
"""

import argparse
from pathlib import Path

from int4_qat.checkpoint import architecture
from int4_qat.checkpoint.heads import Head
from int4_qat.engines import inference
from int4_qat.evaluation import comparison, hidden_states
from int4_qat.evaluation.comparison import Variant
from int4_qat.results import divergence_report
from int4_qat.system import devices, errors
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the quantized checkpoint")
    parser.add_argument("--base", required=True, type=Path, help="folder with the base model, in bf16")
    parser.add_argument("--base-states", required=True, type=Path, help="output of record_hidden_states for the base")
    parser.add_argument("--own", required=True, type=Path, help="folder with the variant's own weights, in bf16")
    parser.add_argument("--own-states", required=True, type=Path, help="output of record_hidden_states for --own")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--gpus", default=1, type=int, help="number of GPUs, for a model that is too large for one")
    parser.add_argument("--report", required=True, type=Path, help="path of divergence.json")
    parser.add_argument("--samples", required=True, type=Path, help="parquet file with one row per window")
    arguments = parser.parse_args()
    devices.claim(arguments.device, arguments.gpus)
    refuse_bf16(arguments.checkpoint)
    base_texts, own_texts = (hidden_states.recorded(path) for path in (arguments.base_states, arguments.own_states))
    hidden_states.refuse_differences(base_texts, own_texts)
    protocol = {name: text.protocol for name, text in base_texts.items()}
    dtype = architecture.DTYPES[next(iter(protocol.values()))["dtype"]]
    model = inference.load_model(arguments.checkpoint, dtype, arguments.device)
    head = Head(model)
    variant = Variant(arguments.checkpoint, head, head.digest(), arguments.device)
    base = comparison.reader(arguments.base, base_texts, variant)
    is_base = arguments.own_states.resolve() == arguments.base_states.resolve()
    own = base if is_base else comparison.reader(arguments.own, own_texts, variant)
    rows = comparison.quantized(model, head, own, base, arguments.device)
    same_head = head is base.head is own.head
    int4_path = inference.int4_path(arguments.checkpoint, arguments.device)
    found = divergence_report.make(rows, protocol, same_head, int4_path, devices.name(arguments.device))
    divergence_report.write(found, rows, arguments.report, arguments.samples)


def refuse_bf16(checkpoint: Path) -> None:
    """Raise InputError if a checkpoint is not quantized."""
    if not inference.is_int4(checkpoint):
        found = "found one in bf16, which record_hidden_states compares"
        raise InputError(f"{checkpoint}: expected a quantized checkpoint, {found}")


if __name__ == "__main__":
    errors.run(main)
