"""Score a checkpoint with lm-eval's own `mmlu` task group, offline, on the data that was downloaded.

Writes mmlu.json (what lm-eval reports, settings, versions) and a table with a row for each question: its four
log-likelihoods, prediction and answer. The accuracy of the table must be lm-eval's.

    python scripts/evaluate_mmlu.py --checkpoint results/demo/qat-int4/checkpoint --mmlu resources/mmlu \\
        --num-fewshot 0 --batch-size 64 --dtype float32 --device cpu \\
        --output results/demo/qat-int4/mmlu.json --samples results/demo/qat-int4/mmlu_samples.parquet
"""

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path

import lm_eval
import numpy as np
import pandas as pd
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from int4_qat import errors, files, mmlu, mmlu_harness, models
from int4_qat.errors import InputError

SEED = 1234
LOG_LIKELIHOODS = [f"log_likelihood_{letter}" for letter in mmlu.LETTERS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--mmlu", required=True, type=Path, help="folder with dev, validation, test .parquet")
    parser.add_argument("--num-fewshot", required=True, type=int, help="examples ahead of each question")
    parser.add_argument("--limit", type=int, help="questions of each subject; all if left out")
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=list(models.DTYPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="mmlu.json")
    parser.add_argument("--samples", required=True, type=Path, help="parquet with a row a question")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = evaluate(arguments, mmlu_harness.lay_out(arguments.mmlu, Path(scratch)))
    samples = sample_table(results["samples"])
    report = make_report(arguments, results, samples)
    with files.whole(arguments.samples) as unfinished:
        samples.to_parquet(unfinished, index=False)
    files.write_json(arguments.output, report)
    print(f"accuracy {report['accuracy']:.4f} +- {report['stderr']:.4f} on {report['questions']} questions")


def evaluate(arguments: argparse.Namespace, include_path: Path) -> dict:
    """lm-eval's results and samples."""
    language_model = HFLM(
        pretrained=models.load_model(arguments.checkpoint, models.DTYPES[arguments.dtype], arguments.device),
        tokenizer=models.load_tokenizer(arguments.checkpoint),
        batch_size=arguments.batch_size,
        softmax_dtype=torch.float32,
    )
    return lm_eval.simple_evaluate(
        language_model,
        tasks=["mmlu"],
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        task_manager=TaskManager(include_path=str(include_path), include_defaults=False),
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )


def sample_table(samples: dict[str, list[dict]]) -> pd.DataFrame:
    """A row a question: subject, index in the subject, log-likelihoods, prediction, answer, correct."""
    rows = []
    for task, questions in sorted(samples.items()):
        for question in questions:
            likelihoods = [float(response[0]) for response in question["filtered_resps"]]
            prediction = int(np.argmax(likelihoods))
            answer = int(question["target"])
            rows.append(
                {
                    "subject": task.removeprefix("mmlu_"),
                    "index": question["doc_id"],
                    **dict(zip(LOG_LIKELIHOODS, likelihoods, strict=True)),
                    "prediction": prediction,
                    "answer": answer,
                    "correct": prediction == answer,
                }
            )
    return pd.DataFrame(rows).sort_values(["subject", "index"], ignore_index=True)


def make_report(arguments: argparse.Namespace, results: dict, samples: pd.DataFrame) -> dict:
    """What is written to mmlu.json; InputError if the table's accuracy is not lm-eval's."""
    total = results["results"]["mmlu"]
    accuracy, recomputed = total["acc,none"], samples["correct"].mean().item()
    if abs(accuracy - recomputed) > 1e-9:
        raise InputError(f"evaluate_mmlu: lm-eval reports {accuracy}, its samples give {recomputed}")
    return {
        "accuracy": accuracy,
        "stderr": total["acc_stderr,none"],
        "questions": len(samples),
        "subjects": samples["subject"].nunique(),
        "by_task": {
            task: {"accuracy": scores["acc,none"], "stderr": scores["acc_stderr,none"]}
            for task, scores in results["results"].items()
        },
        "task_versions": results["versions"],
        "settings": {
            "task": "mmlu",
            "num_fewshot": arguments.num_fewshot,
            "limit": arguments.limit,
            "batch_size": arguments.batch_size,
            "dtype": arguments.dtype,
            "softmax_dtype": "float32",
            "device": arguments.device,
            "seed": SEED,
        },
        "versions": {name: version(name) for name in ("lm-eval", "transformers", "torch", "torchao")},
    }


if __name__ == "__main__":
    errors.run(main)
