"""Score a checkpoint with lm-eval's own `mmlu` tasks, offline, on the downloaded data.

A shard is some of the subjects, so that several jobs can share one checkpoint. The output is what lm-eval reports for
each subject, with settings and versions, and a table with one row per question: its four log-likelihoods, prediction
and answer. The accuracies of the table must equal lm-eval's. gather_mmlu combines the shards.

    python scripts/evaluate_mmlu.py --checkpoint results/demo/qat-int4/checkpoint --mmlu resources/mmlu \\
        --num-fewshot 0 --batch-size 64 --dtype float32 --device cpu --shard 0 --shards 1 \\
        --output results/demo/qat-int4/mmlu_shards/0.json --samples results/demo/qat-int4/mmlu_shards/0.parquet
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from lm_eval.tasks import TaskManager

from int4_qat.checkpoint import architecture
from int4_qat.data import mmlu, mmlu_parquet
from int4_qat.engines import inference
from int4_qat.evaluation import answers, mmlu_harness, scoring
from int4_qat.results.schema.mmlu import Shard, Subject
from int4_qat.system import devices, errors, files, scratch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--mmlu", required=True, type=Path, help="folder with dev, validation and test .parquet")
    parser.add_argument("--shard", type=int, default=0, help="number of the shard, counted from 0")
    parser.add_argument("--shards", type=int, default=1, help="number of shards into which the subjects are divided")
    parser.add_argument(
        "--engine",
        default="stock",
        choices=list(scoring.ENGINES),
        help="stock is lm-eval's own code; last_position gives the same scores faster",
    )
    parser.add_argument("--num-fewshot", required=True, type=int, help="number of examples before each question")
    parser.add_argument("--limit", type=int, help="number of questions per subject; all if omitted")
    parser.add_argument(
        "--batch-size",
        required=True,
        type=int,
        help="number of questions at once; last_position takes 1,024 tokens for each",
    )
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES), help="number format of the model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--gpus", default=1, type=int, help="number of GPUs that share the questions, or a large model")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the results that lm-eval reports")
    parser.add_argument("--samples", required=True, type=Path, help="parquet file with one row per question")
    arguments = parser.parse_args()
    splits = {
        split: mmlu_parquet.count_subjects(arguments.mmlu / f"{split}.parquet") for split in mmlu.EVALUATION_SPLITS
    }
    mmlu_parquet.check_questions(arguments.mmlu, splits, arguments.num_fewshot)
    devices.claim(arguments.device, arguments.gpus)
    subjects = mmlu_harness.shard_subjects(arguments.mmlu, arguments.shard, arguments.shards)
    with scratch.folder() as work:
        include_path = mmlu_harness.lay_out(arguments.mmlu, work)
        task_manager = TaskManager(include_path=str(include_path), include_defaults=False)
        tasks = [mmlu_harness.task_name(subject) for subject in subjects]
        options = scoring.options_of(vars(arguments))
        evaluation = scoring.evaluate(options, arguments.engine, tasks, task_manager)
    named = dict(zip(tasks, subjects, strict=True))
    samples = answers.table(evaluation.results["samples"], named, len(mmlu.LETTERS))
    report = make_report(arguments, subjects, evaluation, samples)
    with files.whole(arguments.samples) as unfinished:
        samples.to_parquet(unfinished, index=False)
    files.write_json(arguments.output, report)
    print(f"accuracy {samples['correct'].mean():.4f} on {len(samples)} questions of {len(subjects)} subjects")


def make_report(
    arguments: argparse.Namespace, subjects: list[str], evaluation: scoring.Evaluation, samples: pd.DataFrame
) -> Shard:
    """Return what lm-eval reports for each subject; raise InputError if the table's accuracy is not lm-eval's."""
    by_subject = {}
    for subject in subjects:
        task = mmlu_harness.task_name(subject)
        correct, long = samples["correct"][samples["subject"] == subject], evaluation.prompts_over_max_length[task]
        by_subject[subject] = Subject(
            **answers.scores(task, evaluation.results, correct, long),
            category=mmlu_harness.category(subject),
            task_version=evaluation.results["versions"][task],
        )
    return Shard(
        by_subject=by_subject,
        stock_check=evaluation.stock_check,
        settings={
            "task": "mmlu",
            **evaluation.settings,
            "int4_path": inference.int4_path(arguments.checkpoint, arguments.device),
        },
        versions={name: version(name) for name in ("lm-eval", "transformers", "torch", "torchao")},
    )


if __name__ == "__main__":
    errors.run(main)
