"""Fit the seconds of MMLU's subjects, from the log of an evaluation, to what the engine last_position computes.

The progress bar of `evaluate_mmlu` (all subjects, one GPU) gives the seconds of each subject. They are fitted by least
squares to a constant, the tokens with their padding and, with examples, the pairs of a token and one that it attends
to.

    python tests/bench/fit_mmlu.py --log /dev/shm/gemma/mmlu_few-shot_5_bf16.json.log --num-fewshot 5 \\
        --mmlu resources/mmlu --tokenizer models/gemma-3-270m --output fit.csv
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.data import mmlu
from int4_qat.evaluation import last_position, mmlu_harness

BAR = re.compile(r"score:\s+\d+%.*? (\d+)/\d+ \[(?:(\d+):)?(\d+):(\d+)<")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", required=True, type=Path, help="log of evaluate_mmlu")
    parser.add_argument("--mmlu", required=True, type=Path, help="folder written by download_mmlu")
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder with the model's tokenizer")
    parser.add_argument("--num-fewshot", type=int, default=0, help="number of examples before each question")
    parser.add_argument("--batch-size", type=int, default=8, help="batch size of the evaluation")
    parser.add_argument("--output", required=True, type=Path, help="CSV file with a row for each subject")
    arguments = parser.parse_args()
    table = work(arguments)
    table["seconds"] = seconds(arguments.log, table["choices"].cumsum())
    table.to_csv(arguments.output)
    causes = {"s per subject": 1.0, "s per million tokens": table["padded"] / 1e6}
    if arguments.num_fewshot:
        causes["s per billion pairs"] = table["pairs"] / 1e9
    causes = pd.DataFrame(causes, index=table.index)
    fit, *_ = np.linalg.lstsq(causes.to_numpy(), table["seconds"].to_numpy(), rcond=None)
    print(table[["questions", "batches", "tokens", "padded", "pairs", "seconds"]].sum().to_string())
    print(pd.Series(fit, causes.columns).to_string())
    print(table["seconds"].nlargest(3).to_string())


def work(arguments: argparse.Namespace) -> pd.DataFrame:
    """Return what each subject makes the engine compute: its questions' tokens, also with padding, and pairs."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    dev, test = (pd.read_parquet(arguments.mmlu / f"{split}.parquet") for split in ("dev", "test"))
    rows = {}
    for subject in sorted(mmlu.SUBJECTS):
        examples = dev[dev["subject"] == subject].head(arguments.num_fewshot).to_dict("records")
        shots = [f"{mmlu_harness.prompt(row)} {mmlu.LETTERS[row['answer']]}\n\n" for row in examples]
        head = mmlu_harness.description(subject) + "".join(shots)
        questions = test[test["subject"] == subject].to_dict("records")
        prompts = [head + mmlu_harness.prompt(row) for row in questions]
        tokens = sorted(map(tuple, tokenizer(prompts)["input_ids"]), key=len, reverse=True)
        prefix = len(last_position.common_prefix(tokens, len(tokens[-1]) - 1))
        at_once = arguments.batch_size * last_position.QUESTION
        shapes = [(len(batch), len(batch[0]) - prefix) for batch in last_position.batches(tokens, at_once, prefix)]
        rows[subject] = {
            "questions": len(tokens),
            "choices": len(tokens) * len(mmlu.LETTERS),
            "batches": len(shapes),
            "tokens": sum(len(row) - prefix for row in tokens),
            "padded": sum(count * longest for count, longest in shapes),
            "pairs": sum(count * longest * (prefix + longest / 2) for count, longest in shapes),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def seconds(log: Path, ends: pd.Series) -> pd.Series:
    """Return each subject's seconds, from the times at which the bar reached its last choice; 0 if it skipped one."""
    found: dict[int, int] = {}
    for done, hours, minutes, rest in BAR.findall(log.read_text(errors="replace")):
        found.setdefault(int(done), int(hours or 0) * 3600 + int(minutes) * 60 + int(rest))
    return ends.map(found).ffill().fillna(0).diff().fillna(0)


if __name__ == "__main__":
    main()
