"""Score a checkpoint on the user's own multiple-choice questions, asked and scored as MMLU is, by lm-eval and offline.

A group is asked like a subject of MMLU. The output is what lm-eval reports for each group, and for all of them pooled,
with settings and versions, and a table with one row per question: the log-likelihoods of its choices, prediction and
answer. The accuracies of the table must equal lm-eval's.

    python scripts/evaluate_questions.py --checkpoint results/demo/qat-int4/checkpoint --name mine \\
        --questions resources/questions/mine --num-fewshot 0 --batch-size 64 --dtype float32 --device cpu \\
        --output results/demo/qat-int4/questions/mine.json \\
        --samples results/demo/qat-int4/questions/mine_samples.parquet
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from lm_eval.tasks import TaskManager

from int4_qat.checkpoint import architecture
from int4_qat.data import mmlu_parquet
from int4_qat.engines import inference
from int4_qat.evaluation import answers, question_tasks, scoring
from int4_qat.results.schema.mmlu import Scores
from int4_qat.results.schema.questions import Questions
from int4_qat.system import devices, errors, files, scratch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--name", required=True, help="name of the set of questions")
    parser.add_argument(
        "--questions", required=True, type=Path, help="folder with test and, for examples, dev .parquet"
    )
    parser.add_argument(
        "--engine",
        default="stock",
        choices=list(scoring.ENGINES),
        help="stock is lm-eval's own code; last_position gives the same scores faster",
    )
    parser.add_argument("--num-fewshot", required=True, type=int, help="number of examples before each question")
    parser.add_argument("--limit", type=int, help="number of questions per group; all if omitted")
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
    groups = find_groups(arguments.questions, arguments.num_fewshot)
    choices = question_tasks.most_choices(arguments.questions / "test.parquet")
    devices.claim(arguments.device, arguments.gpus)
    with scratch.folder() as work:
        tasks = question_tasks.make(arguments.questions, arguments.name, groups, arguments.num_fewshot, work)
        options = scoring.options_of(vars(arguments))
        task_manager = TaskManager(include_defaults=False)
        evaluation = scoring.evaluate(options, arguments.engine, tasks, task_manager)
    names = {question_tasks.task_name(arguments.name, group): group for group in groups}
    samples = answers.table(evaluation.results["samples"], names, choices)
    report = make_report(arguments, names, evaluation, samples)
    with files.whole(arguments.samples) as unfinished:
        samples.to_parquet(unfinished, index=False)
    files.write_json(arguments.output, report)
    print(f"accuracy {report['accuracy']:.4f} on {report['questions']} questions of {report['groups']} groups")


def find_groups(data: Path, num_fewshot: int) -> list[str]:
    """Return the groups of a set; raise InputError if one cannot be scored with this number of examples."""
    splits = ("dev", "test") if num_fewshot else ("test",)
    questions = {split: mmlu_parquet.count_subjects(data / f"{split}.parquet") for split in splits}
    mmlu_parquet.check_subjects(data, questions, questions["test"], num_fewshot)
    return sorted(questions["test"])


def make_report(
    arguments: argparse.Namespace, names: dict[str, str], evaluation: scoring.Evaluation, samples: pd.DataFrame
) -> Questions:
    """Return what lm-eval reports for each group and for all; names gives the group of each task by the task's name."""
    by_group = {}
    for task, group in names.items():
        correct, long = samples["correct"][samples["subject"] == group], evaluation.prompts_over_max_length[task]
        by_group[group] = Scores(**answers.scores(task, evaluation.results, correct, long))
    return Questions(
        **answers.pool(pd.DataFrame.from_dict(by_group, orient="index")),
        groups=len(by_group),
        by_group=by_group,
        stock_check=evaluation.stock_check,
        settings={
            "task": arguments.name,
            **evaluation.settings,
            "int4_path": inference.int4_path(arguments.checkpoint, arguments.device),
        },
        versions={name: version(name) for name in ("lm-eval", "transformers", "torch", "torchao")},
    )


if __name__ == "__main__":
    errors.run(main)
