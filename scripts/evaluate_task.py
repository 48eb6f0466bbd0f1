"""Score a checkpoint with one of lm-eval's tasks or groups, by lm-eval's name, offline, on the downloaded data.

The task is lm-eval's, except for the place of its data. The output is every metric that lm-eval reports, with its
standard error and direction, settings and versions, and a table with one row per document and metric. lm-eval's figures
must follow from the table, as int4_qat/results/task_metrics.py computes them. A metric that does not follow from values
of single documents has no rows.

    python scripts/evaluate_task.py --checkpoint results/demo/qat-int4/checkpoint --task arc_challenge \\
        --dataset resources/datasets/arc_challenge --engine last_position --num-fewshot 25 --batch-size 8 \\
        --dtype bfloat16 --device cuda \\
        --output results/demo/qat-int4/tasks/arc_challenge.json \\
        --samples results/demo/qat-int4/tasks/arc_challenge_samples.parquet
"""

import argparse
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from int4_qat.checkpoint import architecture
from int4_qat.evaluation import scoring, task_harness
from int4_qat.evaluation.task_harness import Loaded
from int4_qat.results import task_metrics
from int4_qat.results.schema.task import Task
from int4_qat.system import devices, errors, files
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--task", required=True, help="lm-eval's name of the task, or of a group that it aggregates")
    parser.add_argument("--dataset", required=True, type=Path, help="folder with the data set, laid out as on the Hub")
    parser.add_argument(
        "--engine",
        default="stock",
        choices=list(scoring.ENGINES),
        help="stock is lm-eval's own code; last_position gives the same scores of choices faster",
    )
    parser.add_argument("--num-fewshot", required=True, type=int, help="number of examples before each question")
    parser.add_argument("--limit", type=int, help="number of questions per task; all if omitted")
    parser.add_argument("--batch-size", required=True, type=int, help="number of requests processed at once")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES), help="number format of the model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--gpus", default=1, type=int, help="number of GPUs that share the questions, or a large model")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the results that lm-eval reports")
    parser.add_argument("--samples", required=True, type=Path, help="parquet file with one row per document and metric")
    arguments = parser.parse_args()
    devices.claim(arguments.device, arguments.gpus)
    task_manager = task_harness.find(arguments.task)
    arguments.checkpoint = arguments.checkpoint.resolve()
    names = task_harness.dataset_names(arguments.task, task_manager.task_index)
    with task_harness.as_on_the_hub(names, arguments.dataset.resolve()):
        loaded = task_harness.load(arguments.task, task_manager)
        options = scoring.options_of(vars(arguments))
        evaluation = scoring.evaluate(options, arguments.engine, [loaded.item], task_manager)
    report = make_report(arguments, loaded, evaluation)
    samples = task_metrics.table(list(rows_of(loaded, evaluation.results["samples"])))
    for misfit in task_metrics.misfits(samples, report):
        raise InputError(f"evaluation.tasks: {misfit}")
    with files.whole(arguments.samples) as unfinished:
        samples.to_parquet(unfinished, index=False)
    files.write_json(arguments.output, report)
    for name, metric in report["metrics"].items():
        print(f"{arguments.task} {name} {metric['value']:.4f} on {report['questions']} questions")


def make_report(arguments: argparse.Namespace, loaded: Loaded, evaluation: scoring.Evaluation) -> Task:
    """Return every metric, with settings and versions; raise InputError if one is not finite."""
    results = evaluation.results
    whole, members = task_harness.metrics_of(loaded, results)
    for name, metrics in [(arguments.task, whole), *members.items()]:
        for metric, entry in metrics.items():
            if not math.isfinite(entry["value"]):
                raise InputError(f"evaluation.tasks: {name}: expected a finite {metric}, found {entry['value']}")
    return Task(
        metrics=whole,
        members=members,
        groups={name: task_harness.names_of(name, loaded) for name in loaded.groups},
        documents={name: samples["effective"] for name, samples in results["n-samples"].items()},
        questions=sum(samples["effective"] for samples in results["n-samples"].values()),
        prompts_over_max_length=evaluation.prompts_over_max_length.total(),
        stock_check=evaluation.stock_check,
        settings={"task": arguments.task, **evaluation.settings},
        task_version=results["versions"].get(arguments.task),
        versions={name: version(name) for name in ("lm-eval", "transformers", "torch", "torchao")},
    )


def rows_of(loaded: Loaded, samples: dict[str, list[dict]]) -> Iterator[dict]:
    """Yield a row for each document and metric whose figure follows from single documents."""
    for name, documents in samples.items():
        kinds = {
            metric: task_harness.aggregation(loaded.tasks[name], metric)
            for metric in {metric for document in documents for metric in document["metrics"]}
        }
        for document in documents:
            for metric in document["metrics"]:
                if kinds[metric] in task_metrics.AGGREGATIONS:
                    weighted = kinds[metric] in task_metrics.WEIGHTED
                    value, weight = document[metric] if weighted else (document[metric], 1)
                    yield {
                        "member": name,
                        "document": document["doc_id"],
                        "metric": f"{metric},{document['filter']}",
                        "value": float(value),
                        "weight": float(weight),
                    }


if __name__ == "__main__":
    errors.run(main)
