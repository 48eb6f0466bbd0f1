"""Tabulate a model's answers question by question, and pool scores over groups of questions."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from int4_qat.data import letters
from int4_qat.system.errors import InputError

FIGURES = ["accuracy", "stderr", "questions", "prompts_over_max_length"]
KEY = ["subject", "index"]


def likelihood_columns(count: int) -> list[str]:
    """Return the names of the log-likelihood columns of `count` choices."""
    return [f"log_likelihood_{letter}" for letter in letters.first(count)]


def table(samples: Mapping[str, list[dict]], subjects: Mapping[str, str], choices: int) -> pd.DataFrame:
    """Return lm-eval's samples with one row per question, sorted by subject and by index within the subject.

    The columns are subject, index, a log-likelihood for each of `choices` choices (NaN beyond a question's own),
    prediction and answer as the choice's number, and correct. subjects gives the subject of each task.
    """
    rows = []
    for task, questions in samples.items():
        for question in questions:
            likelihoods = [float(response[0]) for response in question["filtered_resps"]]
            prediction, answer = int(np.argmax(likelihoods)), int(question["target"])
            missing = [float("nan")] * (choices - len(likelihoods))
            rows.append(
                {
                    "subject": subjects[task],
                    "index": question["doc_id"],
                    **dict(zip(likelihood_columns(choices), likelihoods + missing, strict=True)),
                    "prediction": prediction,
                    "answer": answer,
                    "correct": prediction == answer,
                }
            )
    return pd.DataFrame(rows).sort_values(KEY, ignore_index=True)


def scores(task: str, results: dict, correct: pd.Series, prompts_over_max_length: int) -> dict:
    """Return the FIGURES of a task as lm-eval reports them; raise InputError if the table's accuracy is not lm-eval's.

    correct says for each question of the task whether it was answered correctly.
    """
    found = results["results"][task]
    if abs(found["acc,none"] - correct.mean()) > 1e-9:
        raise InputError(
            f"{task}: expected lm-eval's accuracy {found['acc,none']} from its samples, found {correct.mean()}"
        )
    values = (found["acc,none"], found["acc_stderr,none"], len(correct), prompts_over_max_length)
    return dict(zip(FIGURES, values, strict=True))


def pool(parts: pd.DataFrame) -> dict:
    """Return the FIGURES of several subjects together, pooled from those of each as lm-eval does.

    lm-eval weights subjects by their size and pools their variances:
    stderr² = sum((n - 1) · n · stderr_n²) / (sum(n) - subjects) / sum(n) (lm_eval.api.metrics.pooled_sample_stderr).
    """
    sizes = parts["questions"].to_numpy()
    total = sizes.sum()
    variance = ((sizes - 1) * sizes * parts["stderr"].to_numpy() ** 2).sum() / (total - len(sizes))
    values = (
        float((sizes * parts["accuracy"].to_numpy()).sum() / total),
        float(np.sqrt(variance / total)),
        int(total),
        int(parts["prompts_over_max_length"].sum()),
    )
    return dict(zip(FIGURES, values, strict=True))


def worst(checks: Sequence[dict | None]) -> dict | None:
    """Return the comparison with lm-eval's own code over all parts, or None if that code did the scoring."""
    if checks[0] is None:
        return None
    return checks[0] | {
        "questions": sum(check["questions"] for check in checks),
        "largest_difference": max(check["largest_difference"] for check in checks),
    }
