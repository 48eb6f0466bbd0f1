"""Point lm-eval's own `mmlu` tasks at this workflow's data."""

import functools
import shutil
from pathlib import Path

import lm_eval
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from int4_qat.data import letters, mmlu, mmlu_parquet
from int4_qat.system.errors import InputError

TASKS = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
TASK_PREFIX = "mmlu_"
TEMPLATE = "_default_template_yaml"
DATASET_LINE = "dataset_path: cais/mmlu\n"


@functools.cache
def tasks() -> dict[str, dict]:
    """Return the settings of each subject's task, by subject."""
    settings = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(TASKS.glob("mmlu_*.yaml"))]
    return {task["dataset_name"]: task for task in settings}


def task_name(subject: str) -> str:
    """Return lm-eval's name of a subject's task."""
    return TASK_PREFIX + subject


def category(subject: str) -> str:
    """Return the category of a subject: stem, humanities, social_sciences or other."""
    return tasks()[subject]["tag"].removeprefix(TASK_PREFIX).removesuffix("_tasks")


def shard_subjects(data: Path, shard: int, shards: int) -> list[str]:
    """Return the subjects of one shard; shards have about equally many characters of test questions.

    Raise InputError if there is no such shard.
    """
    if not 0 <= shard < shards:
        raise InputError(f"--shard: expected a number from 0 to {shards - 1}, found {shard}")
    test = pq.read_table(data / "test.parquet", columns=["subject", "question"])
    lengths = test.append_column("length", pc.utf8_length(test["question"]))
    by_subject = lengths.group_by("subject").aggregate([("length", "sum")])
    totals = dict(zip(by_subject["subject"].to_pylist(), by_subject["length_sum"].to_pylist(), strict=True))
    loads: list[list[str]] = [[] for _ in range(shards)]
    for subject in sorted(mmlu.SUBJECTS, key=lambda subject: (-totals.get(subject, 0), subject)):
        min(loads, key=lambda load: sum(totals.get(other, 0) for other in load)).append(subject)
    return sorted(loads[shard])


def description(subject: str) -> str:
    """Return the line ahead of a subject's questions."""
    return tasks()[subject]["description"]


def prompt(row: dict) -> str:
    """Return a question as lm-eval's doc_to_text writes it, with any number of choices; a test compares the two."""
    named = zip(letters.first(len(row["choices"])), row["choices"], strict=True)
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in named)
    return f"{row['question'].strip()}\n{choices}Answer:"


def lay_out(data: Path, folder: Path) -> Path:
    """Write a tasks folder for lm-eval's `include_path` and its data next to it; return the tasks folder."""
    dataset, include = folder / "dataset", folder / "tasks"
    for split in mmlu.EVALUATION_SPLITS:
        table = pq.read_table(data / f"{split}.parquet", schema=mmlu_parquet.SCHEMA)
        for subject in mmlu.SUBJECTS:
            (dataset / subject).mkdir(parents=True, exist_ok=True)
            rows = table.filter(pc.equal(table["subject"], subject))
            pq.write_table(rows, dataset / subject / f"{split}.parquet")
    shutil.copytree(TASKS, include)
    template = (include / TEMPLATE).read_text(encoding="utf-8")
    if DATASET_LINE not in template:
        raise RuntimeError(f"{TASKS / TEMPLATE} no longer says '{DATASET_LINE.strip()}'")
    cache = yaml.safe_dump({"dataset_kwargs": {"cache_dir": str(folder / "cache")}})
    (include / TEMPLATE).write_text(template.replace(DATASET_LINE, cache), encoding="utf-8")
    files = [{"split": split, "path": f"{split}.parquet"} for split in mmlu.EVALUATION_SPLITS]
    for subject in mmlu.SUBJECTS:
        # Each subject has its own folder: `datasets` would re-read the whole of a common one for each subject.
        header = yaml.safe_dump({"configs": [{"config_name": subject, "data_files": files}]})
        (dataset / subject / "README.md").write_text(f"---\n{header}---\n", encoding="utf-8")
        with (include / f"{task_name(subject)}.yaml").open("a", encoding="utf-8") as task:
            task.write("\n" + yaml.safe_dump({"dataset_path": str(dataset / subject)}))
    return include
