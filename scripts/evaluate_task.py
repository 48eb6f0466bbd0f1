"""Score a checkpoint with one of lm-eval's tasks or groups, by lm-eval's name, offline, on data that was downloaded.

The task is lm-eval's but for where its data lies. Writes every metric that lm-eval reports, with its standard error,
settings and versions.

    python scripts/evaluate_task.py --checkpoint results/demo/qat-int4/checkpoint --task arc_challenge \\
        --dataset resources/datasets/arc_challenge --num-fewshot 25 --batch-size 8 --dtype bfloat16 --device cuda \\
        --output results/demo/qat-int4/tasks/arc_challenge.json
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import datasets
from lm_eval.tasks import TaskManager

from int4_qat import devices, errors, files, models, scoring
from int4_qat.errors import InputError

STDERR = "_stderr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--task", required=True, help="lm-eval's name of a task or of a group that it aggregates")
    parser.add_argument("--dataset", required=True, type=Path, help="folder of the task's data set, as on the Hub")
    parser.add_argument("--num-fewshot", required=True, type=int, help="examples ahead of each question")
    parser.add_argument("--limit", type=int, help="questions of each task; all if left out")
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=list(models.DTYPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", required=True, type=Path, help="JSON with what lm-eval reports")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    task_manager = TaskManager()
    if arguments.task not in [*task_manager.all_subtasks, *task_manager.all_groups]:
        raise InputError(f"evaluation.tasks: lm-eval {version('lm-eval')} has no task or group '{arguments.task}'")
    arguments.checkpoint = arguments.checkpoint.resolve()
    with as_on_the_hub(dataset_names(arguments.task, task_manager.task_index), arguments.dataset.resolve()):
        evaluation = scoring.evaluate(arguments, scoring.STOCK, [arguments.task], task_manager)
    report = make_report(arguments, evaluation)
    files.write_json(arguments.output, report)
    for name, metric in report["metrics"].items():
        print(f"{arguments.task} {name} {metric['value']:.4f} on {report['questions']} questions")


@contextlib.contextmanager
def as_on_the_hub(names: set[str], folder: Path) -> Iterator[None]:
    """Work where a data set's names on the Hub are folders: `datasets` looks there first, the task stays as it is."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).symlink_to(folder)
        datasets.config.HF_DATASETS_CACHE = Path(scratch) / "cache"
        yield


def dataset_names(task: str, index: dict) -> set[str]:
    """The Hub's names of the data sets of one of lm-eval's tasks, or of all tasks of a group."""
    config = index[task].cfg
    if config and "dataset_path" in config:
        return {config["dataset_path"]}
    members = config["task"] if config else index[task].tags
    members = [member if isinstance(member, str) else member["task"] for member in members]
    return set().union(*(dataset_names(member, index) for member in members))


def make_report(arguments: argparse.Namespace, evaluation: scoring.Evaluation) -> dict:
    """Metrics of the task, and of its members if it is a group; InputError if lm-eval has no figure for the whole."""
    results = evaluation.results
    found = {name: metrics(scores) for name, scores in results["results"].items()}
    members = sorted(found.keys() - {arguments.task})
    if not found.get(arguments.task):
        raise InputError(f"evaluation.tasks: lm-eval gives no figure for {arguments.task}; name its parts, {members}")
    return {
        "metrics": found.pop(arguments.task),
        "members": found,
        "questions": sum(samples["effective"] for samples in results["n-samples"].values()),
        "prompts_over_max_length": evaluation.prompts_over_max_length.total(),
        "settings": {"task": arguments.task, **evaluation.settings},
        "task_version": results["versions"].get(arguments.task),
        "versions": {name: version(name) for name in ("lm-eval", "transformers", "torch", "torchao")},
    }


def metrics(scores: dict) -> dict[str, dict]:
    """value and stderr (None if lm-eval has none) by lm-eval's name, `<metric>,<filter>`."""
    found = {}
    for name, value in scores.items():
        metric, _, name_of_filter = name.partition(",")
        if name_of_filter and not metric.endswith(STDERR):
            stderr = scores.get(f"{metric}{STDERR},{name_of_filter}")
            found[name] = {"value": float(value), "stderr": stderr if isinstance(stderr, float) else None}
    return found


if __name__ == "__main__":
    errors.run(main)
