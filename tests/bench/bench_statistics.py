"""Measure the bootstrap of a whole MMLU: 14,042 questions in 57 subjects, 5 variants, 10,000 resamples.

python tests/bench/bench_statistics.py
"""

import statistics as standard
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.results import metrics, statistics

QUESTIONS, SUBJECTS, VARIANTS, ROUNDS = 14_042, 57, list("abcde"), 3


def main() -> None:
    subjects = np.sort(np.arange(QUESTIONS) % SUBJECTS)
    index = pd.MultiIndex.from_arrays([subjects, np.arange(QUESTIONS)], names=["subject", "index"])
    right = np.random.default_rng(0).random((QUESTIONS, len(VARIANTS))) < 0.7
    correct = pd.DataFrame(right, index, VARIANTS)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        metrics.scores(metrics.make("mmlu", metrics.SHARE, correct))
        seconds.append(time.perf_counter() - start)
    size = f"{QUESTIONS} questions x {len(VARIANTS)} variants x {statistics.RESAMPLES} resamples"
    print(f"{size}: {standard.median(seconds):.1f} s")


if __name__ == "__main__":
    main()
