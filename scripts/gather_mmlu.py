"""Combine the shards of one variant's MMLU: accuracy by subject, by category and overall, computed as lm-eval does.

    python scripts/gather_mmlu.py --shard-reports results/demo/qat-int4/mmlu_shards/*.json \\
        --shard-samples results/demo/qat-int4/mmlu_shards/*.parquet \\
        --output results/demo/qat-int4/mmlu.json --samples results/demo/qat-int4/mmlu_samples.parquet
"""

import argparse
from pathlib import Path

import pandas as pd

from int4_qat.data import parquet_files
from int4_qat.evaluation import answers
from int4_qat.results.schema.mmlu import Mmlu, Scores, Shard, Subject
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard-reports", required=True, nargs="+", type=Path, help="JSON files of the shards")
    parser.add_argument("--shard-samples", required=True, nargs="+", type=Path, help="parquet files of the shards")
    parser.add_argument("--output", required=True, type=Path, help="path of mmlu.json")
    parser.add_argument("--samples", required=True, type=Path, help="parquet file with one row per question")
    arguments = parser.parse_args()
    reports = {path: files.read_json(path) for path in arguments.shard_reports}
    tables = [parquet_files.open_file(path, ["subject", "index"]).read() for path in arguments.shard_samples]
    samples = pd.concat([table.to_pandas() for table in tables]).sort_values(["subject", "index"], ignore_index=True)
    report = gather(reports, samples)
    with files.whole(arguments.samples) as unfinished:
        samples.to_parquet(unfinished, index=False)
    files.write_json(arguments.output, report)
    print(f"accuracy {report['accuracy']:.4f} +- {report['stderr']:.4f} on {report['questions']} questions")


def gather(reports: dict[Path, Shard], samples: pd.DataFrame) -> Mmlu:
    """Return the content of mmlu.json.

    Raise InputError if shards differ in settings or versions, share subjects, or do not fit the samples.
    """
    first = next(iter(reports.values()))
    by_subject: dict[str, Subject] = {}
    for path, report in reports.items():
        for key in ("settings", "versions"):
            if report[key] != first[key]:
                raise InputError(f"{path}: expected the {key} of the first shard, found others")
        if shared := sorted(by_subject.keys() & report["by_subject"].keys()):
            raise InputError(f"{path}: expected each subject in one shard, found {shared[0]} in two")
        by_subject |= report["by_subject"]
    counted = samples["subject"].value_counts().to_dict()
    if counted != {subject: scores["questions"] for subject, scores in by_subject.items()}:
        raise InputError("--shard-samples: expected the samples of the reports, found others")
    subjects = pd.DataFrame.from_dict(by_subject, orient="index").sort_index()
    categories = {name: Scores(**answers.pool(group)) for name, group in sorted(subjects.groupby("category"))}
    return Mmlu(
        **answers.pool(subjects),
        subjects=len(subjects),
        by_category=categories,
        by_subject=subjects.to_dict(orient="index"),
        stock_check=answers.worst([report["stock_check"] for report in reports.values()]),
        settings=first["settings"],
        versions=first["versions"],
    )


if __name__ == "__main__":
    errors.run(main)
