"""Score a checkpoint with one of lm-eval's tasks or groups, by lm-eval's name, offline, on data that was downloaded.

The task is lm-eval's but for where its data lies. Writes every metric that lm-eval reports, with its standard error,
settings and versions.

    python scripts/evaluate_task.py --checkpoint results/demo/qat-int4/checkpoint --task arc_challenge \\
        --dataset resources/datasets/arc_challenge --num-fewshot 25 --batch-size 8 --dtype bfloat16 --device cuda \\
        --output results/demo/qat-int4/tasks/arc_challenge.json
"""

import argparse
from importlib.metadata import version
from pathlib import Path

from int4_qat.checkpoint import architecture
from int4_qat.evaluation import scoring, task_harness
from int4_qat.results.schema.task import Task
from int4_qat.system import devices, errors, files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--task", required=True, help="lm-eval's name of a task or of a group that it aggregates")
    parser.add_argument("--dataset", required=True, type=Path, help="folder of the task's data set, as on the Hub")
    parser.add_argument("--num-fewshot", required=True, type=int, help="examples ahead of each question")
    parser.add_argument("--limit", type=int, help="questions of each task; all if left out")
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="JSON with what lm-eval reports")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    task_manager = task_harness.find(arguments.task)
    arguments.checkpoint = arguments.checkpoint.resolve()
    names = task_harness.dataset_names(arguments.task, task_manager.task_index)
    with task_harness.as_on_the_hub(names, arguments.dataset.resolve()):
        options = scoring.Options(*(getattr(arguments, name) for name in scoring.Options._fields))
        evaluation = scoring.evaluate(options, scoring.STOCK, [arguments.task], task_manager)
    report = make_report(arguments, evaluation)
    files.write_json(arguments.output, report)
    for name, metric in report["metrics"].items():
        print(f"{arguments.task} {name} {metric['value']:.4f} on {report['questions']} questions")


def make_report(arguments: argparse.Namespace, evaluation: scoring.Evaluation) -> Task:
    """Every metric, with settings and versions."""
    results = evaluation.results
    whole, members = task_harness.metrics_of(arguments.task, results)
    return Task(
        metrics=whole,
        members=members,
        questions=sum(samples["effective"] for samples in results["n-samples"].values()),
        prompts_over_max_length=evaluation.prompts_over_max_length.total(),
        settings={"task": arguments.task, **evaluation.settings},
        task_version=results["versions"].get(arguments.task),
        versions={name: version(name) for name in ("lm-eval", "transformers", "torch", "torchao")},
    )


if __name__ == "__main__":
    errors.run(main)
