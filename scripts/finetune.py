"""Fine-tune LoRA adapters on the formatted texts, with fake quantization (QAT) or without.

The loss is the cross-entropy of the answers, the divergence from the base in bf16, or both. If the program is killed at
any moment and restarted, it resumes from its last whole checkpoint in --checkpoints, provided that recipe, texts and
model are still the same. SIGTERM makes it write a checkpoint first. The output is a peft adapter, grids if they were
learned, and a table of each step. The recipe's backend trains. It is loaded before everything else, since unsloth
patches trl, transformers and peft only if it is imported before them.

    python scripts/finetune.py --model resources/models/demo --texts questions=results/demo/train.parquet \\
        --recipe '{"r": 8, ...}' --checkpoints /tmp/checkpoints \\
        --adapter results/demo/qat/adapter --log-table results/demo/qat/training.csv
"""

import argparse
import json
import sys
from pathlib import Path

from int4_qat.data import named_files
from int4_qat.system import errors, rooms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with the model to train")
    parser.add_argument("--base", type=Path, help="folder with the base model, if --model is calibrated")
    parser.add_argument("--texts", required=True, nargs="+", metavar="NAME=PATH", help="texts to train on")
    parser.add_argument("--recipe", required=True, type=json.loads, help="settings of the training, as JSON")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--processes", type=int, default=1, help="number of processes, each on its own GPU")
    parser.add_argument(
        "--spread",
        default="auto",
        help="whether the GPUs share the frozen weights: always, never, or auto if they do not fit on one",
    )
    parser.add_argument(
        "--checkpoints", required=True, type=Path, help="folder for training checkpoints, to resume from"
    )
    parser.add_argument("--adapter", required=True, type=Path, help="folder for the peft adapter")
    parser.add_argument("--log-table", required=True, type=Path, help="CSV file for the figures of each logged step")
    parser.add_argument("--report-to", default="none", help="service to report metrics to, as transformers names it")
    parser.add_argument(
        "--allow-worse",
        type=int,
        default=0,
        choices=[0, 1],
        help="1 accepts a training that ends further from the base than it began",
    )
    options = vars(parser.parse_args())
    processes = options.pop("processes")
    if processes == 1:
        train(options)
        return
    from int4_qat.training import ranks

    if not ranks.launched():
        launch(processes, options)
        return
    try:
        ranks.end_with_launcher()
        train(options)
    except errors.InputError as error:
        ranks.give_reason(error)
        raise


def launch(processes: int, options: dict) -> None:
    """Train in several processes; raise InputError if one fails, or if a signal ended them before the last step."""
    from int4_qat.system import devices
    from int4_qat.training import ranks

    devices.claim(options["device"], processes)
    signal = ranks.launch(processes, [__file__, *sys.argv[1:]])
    finished = options["adapter"].exists() and not options["checkpoints"].exists()
    if signal and not finished:
        saved = any(options["checkpoints"].glob("checkpoint-*/whole"))
        then = "resumes from the last checkpoint" if saved else "begins with the first step"
        raise errors.InputError(f"finetune: stopped by {signal}; the next run {then}")


def train(options: dict) -> None:
    """Train in this process."""
    words = options.pop("recipe") | {"allow_worse": bool(options.pop("allow_worse"))}
    options["texts"] = named_files.parse("--texts", options["texts"], "text or parquet")
    backend = rooms.load(rooms.BACKENDS, words["backend"])
    backend.prepare()
    from int4_qat.training import run
    from int4_qat.training.recipe import Options, Recipe

    run.train(Options(**options), Recipe(**words), backend)


if __name__ == "__main__":
    errors.run(main)
