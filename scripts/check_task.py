"""Try one of lm-eval's tasks or groups on the downloaded data, before any GPU works on it.

A model that answers at random is asked the first questions, as evaluate_task asks a real one. Errors that would stop
that program stop this one, with one line: a task that lm-eval does not have or that does not fit the data, or examples
that the data does not hold or the task does not take. The output says which metrics there are, whether a higher value
is better, and how lm-eval computes them from single documents.

    python scripts/check_task.py --task arc_challenge --dataset resources/datasets/arc_challenge \\
        --num-fewshot 25 --output resources/tasks/arc_challenge.json
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import lm_eval
from lm_eval.models.dummy import DummyLM
from lm_eval.tasks import TaskManager

from int4_qat.evaluation import task_harness
from int4_qat.evaluation.task_harness import Loaded
from int4_qat.results.schema.task import Kind
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError, one_line

QUESTIONS = 2


class Guesser(DummyLM):
    """The model of lm-eval that answers at random, without the tokenizer that DummyLM would fetch from the Hub."""

    tokenizer = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="lm-eval's name of the task, or of a group that it aggregates")
    parser.add_argument("--dataset", required=True, type=Path, help="folder with the data set, laid out as on the Hub")
    parser.add_argument("--num-fewshot", required=True, type=int, help="number of examples before each question")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for the metrics that lm-eval reports")
    arguments = parser.parse_args()
    task_manager = task_harness.find(arguments.task)
    names = task_harness.dataset_names(arguments.task, task_manager.task_index)
    with task_harness.as_on_the_hub(names, arguments.dataset.resolve()):
        loaded = load(arguments, task_manager)
        refuse_missing_examples(arguments, loaded.tasks)
        results = ask(arguments, loaded, task_manager)
    metrics, members = task_harness.metrics_of(loaded, results)
    refuse_other_examples(arguments, results["n-shot"])
    kinds = {name: {key: metric[key] for key in Kind.__annotations__} for name, metric in metrics.items()}
    report = {"task": arguments.task, "metrics": kinds, "members": sorted(members)}
    files.write_json(arguments.output, report | {"versions": {"lm-eval": version("lm-eval")}})
    print(f"{arguments.task} reports {', '.join(metrics)}")


def load(arguments: argparse.Namespace, task_manager: TaskManager) -> Loaded:
    """Return the task with its data; raise InputError if the data does not fit."""
    try:
        return task_harness.load(arguments.task, task_manager)
    except Exception as error:  # a task's own code runs here, and expects columns of its own
        raise misfit(arguments, error) from None


def ask(arguments: argparse.Namespace, loaded: Loaded, task_manager: TaskManager) -> dict:
    """Return lm-eval's results for the model that guesses; raise InputError if a question cannot be asked."""
    try:
        return lm_eval.simple_evaluate(
            Guesser(),
            tasks=[loaded.item],
            num_fewshot=arguments.num_fewshot,
            limit=QUESTIONS,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=task_manager,
        )
    except Exception as error:  # as above
        raise misfit(arguments, error) from None


def misfit(arguments: argparse.Namespace, error: Exception) -> InputError:
    """Return what lm-eval or the task says, as an InputError of one line."""
    reason = f"{type(error).__name__}: {one_line(error)}"
    return InputError(
        f"evaluation.tasks: {arguments.task}: expected data that fit the task in {arguments.dataset}, found {reason}"
    )


def refuse_missing_examples(arguments: argparse.Namespace, tasks: dict) -> None:
    """Raise InputError if a task's data holds too few rows to take the examples from."""
    for name, task in tasks.items():
        rows = len(task.sampler.df) if hasattr(task, "sampler") else 0
        asked = task.fewshot_cfg.split == task.config.test_split  # then a question cannot be its own example
        least = arguments.num_fewshot + (1 if asked and arguments.num_fewshot else 0)
        if rows < least:
            raise InputError(
                f"evaluation.tasks: {name}: expected {least} or more rows for num_fewshot {arguments.num_fewshot}, "
                f"found {rows} in {arguments.dataset}"
            )


def refuse_other_examples(arguments: argparse.Namespace, examples: dict[str, int]) -> None:
    """Raise InputError if a task's own number of examples overrides the config's, as some of lm-eval's do."""
    for name, count in examples.items():
        if count != arguments.num_fewshot:
            raise InputError(
                f"evaluation.tasks: {name}: expected num_fewshot {count}, the only number with which lm-eval asks it, "
                f"found {arguments.num_fewshot}"
            )


if __name__ == "__main__":
    errors.run(main)
