"""Turn the user's own questions into lm-eval tasks: one task per group, with the prompt of lm-eval's `mmlu`.

A group takes the place of a subject; the prompt shows underscores in its name as spaces. A set without groups has a
single group, named after the set, which the prompt does not mention.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from int4_qat.data import letters, mmlu_parquet, parquet_files
from int4_qat.evaluation import mmlu_harness

LEAD = "The following are multiple choice questions (with answers)"
DESCRIPTION = "description"  # a column, since lm-eval would treat a description in the config as a template
CHOICES = "choices"


def task_name(name: str, group: str) -> str:
    """Return the name of a group's task in lm-eval's results and in messages."""
    return name if group == name else f"{name}_{group}"


def description(name: str, group: str) -> str:
    """Return the text ahead of a group's questions."""
    return f"{LEAD}.\n\n" if group == name else f"{LEAD} about {group.replace('_', ' ')}.\n\n"


def most_choices(test: Path) -> int:
    """Return the largest number of choices that a question has."""
    column = parquet_files.open_file(test, [CHOICES]).read([CHOICES])[CHOICES]
    return pc.max(pc.list_value_length(column)).as_py()


def doc_to_choice(row: dict) -> list[str]:
    """Return the letters of a question's choices."""
    return list(letters.first(len(row[CHOICES])))


def make(data: Path, name: str, groups: list[str], num_fewshot: int, folder: Path) -> list[dict]:
    """Write the questions of each group to a folder and return the config of each group's task."""
    splits = ("dev", "test") if num_fewshot else ("test",)
    tables = {split: pq.read_table(data / f"{split}.parquet", schema=mmlu_parquet.SCHEMA) for split in splits}
    tasks = []
    for number, group in enumerate(groups):
        paths = {split: folder / f"{number}_{split}.parquet" for split in splits}
        for split, path in paths.items():
            rows = tables[split].filter(pc.equal(tables[split]["subject"], group))
            texts = pa.array([description(name, group)] * len(rows), pa.string())
            pq.write_table(rows.append_column(DESCRIPTION, texts), path)
        tasks.append(config(task_name(name, group), paths, folder / "cache"))
    return tasks


def config(task: str, paths: dict[str, Path], cache: Path) -> dict:
    """Return the config of lm-eval's `mmlu` for a subject, but on other data and for any number of choices."""
    files = {split: str(path) for split, path in paths.items()}
    return {
        "task": task,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(cache)},
        "test_split": "test",
        "fewshot_split": "dev" if "dev" in paths else None,
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "description": DESCRIPTION,
        "doc_to_text": mmlu_harness.prompt,
        "doc_to_choice": doc_to_choice,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
