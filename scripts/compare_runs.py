"""Compare runs side by side: how their configs differ, and what that changed. The first folder is the reference.

Runs are compared by their headline, which must be the same metric. If it is an accuracy and both runs asked the same
questions of the same data, a difference is paired: it has an interval, an exact p-value, and the answers that flipped
each way. Otherwise the difference is printed without these.

    python scripts/compare_runs.py results-a/demo results-b/demo --json comparison.json
"""

import argparse
from pathlib import Path

import pandas as pd

from int4_qat.results import measured_files, measurements, metrics, statistics, tables, verification
from int4_qat.results.measurements import MMLU, Measurement
from int4_qat.system import errors, files
from int4_qat.system.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders with results; the first is the reference")
    parser.add_argument("--json", type=Path, help="JSON file for the comparison")
    arguments = parser.parse_args()
    if len(arguments.results) < 2:
        raise InputError(f"compare_runs: expected two or more folders of results, found {len(arguments.results)}")
    reference, *others = (read_run(folder) for folder in arguments.results)
    refuse_other_headlines(reference, others)
    comparison = {"reference": reference["folder"], "runs": [compare(run, reference) for run in others]}
    if arguments.json:
        files.write_json(arguments.json, comparison)
    for run in comparison["runs"]:
        print(f"{run['folder']} against {comparison['reference']}\n")
        for title, table in printed(run).items():
            print(f"{title}\n{table.to_string(index=False) if len(table) else 'none'}\n")


def read_run(folder: Path) -> dict:
    """Return provenance, summary and, if the headline is of multiple-choice questions, the answers of each variant."""
    summary, provenance = files.read_json(folder / "summary.json"), files.read_json(folder / "provenance.json")
    if "headline" not in summary:
        raise InputError(f"{folder / 'summary.json'}: expected the key headline, found none; re-run the workflow")
    rows = {row["name"]: row for row in summary["variants"]}
    asked = asked_by(provenance["settings"], summary["headline"]["metric"])
    return {
        "folder": str(folder),
        "provenance": provenance,
        "headline": summary["headline"],
        "rows": rows,
        "answers": {name: measured_files.read_samples(folder / name, asked) for name in rows} if asked else {},
        "questions": asked and provenance["files"].get(questions_of(asked)),
    }


def asked_by(settings: dict, headline: str) -> Measurement | None:
    """Return the multiple-choice questions whose accuracy is the headline; None if the headline is something else."""
    measured = next(iter(measurements.asked(settings).values()))
    return next((one for one in measured if one.name == headline and one.samples and one.samples.of_choices), None)


def questions_of(asked: Measurement) -> str:
    """Return the path that the questions have in provenance.json."""
    return f"resources/{'mmlu' if asked.name == MMLU.name else f'questions/{asked.name}'}/test.parquet"


def refuse_other_headlines(reference: dict, others: list[dict]) -> None:
    """Raise InputError if a run's headline is another metric than the reference's."""
    expected = reference["headline"]["metric"]
    for run in others:
        if run["headline"]["metric"] != expected:
            found = run["headline"]["metric"]
            raise InputError(
                f"{run['folder']}: expected the headline of {reference['folder']}, {expected}, found {found}"
            )


def compare(run: dict, reference: dict) -> dict:
    """Return the differences in config, commit and versions, and those of each variant that both runs have."""
    ours, theirs = run["provenance"], reference["provenance"]
    same_data = run["questions"] is not None and run["questions"] == reference["questions"]
    shared = [name for name in run["rows"] if name in reference["rows"]]
    return {
        "folder": run["folder"],
        "headline": run["headline"],
        "config": changes(ours["settings"], theirs["settings"]),
        "workflow": changes(ours["workflow"], theirs["workflow"]),
        "versions": changes(ours["versions"], theirs["versions"]),
        "same_questions": same_data,
        "variants": [compare_variant(name, run, reference, same_data) for name in shared],
        "only_here": sorted(run["rows"].keys() - reference["rows"].keys()),
        "only_in_reference": sorted(reference["rows"].keys() - run["rows"].keys()),
    }


def changes(ours: dict, theirs: dict) -> list[dict]:
    """Return each key that differs, with its values in the reference and here."""
    return [
        {"key": where.removeprefix("."), "reference": expected, "here": found}
        for where, found, expected in verification.differences(ours, theirs, "")
    ]


def compare_variant(name: str, run: dict, reference: dict, same_data: bool) -> dict:
    """Return how headline, recovery, memory and latency of a variant changed, paired if the questions are the same."""
    row, other = run["rows"][name], reference["rows"][name]
    answers, other_answers = run["answers"].get(name), reference["answers"].get(name)
    paired = same_data and answers.index.equals(other_answers.index)
    reason = "no questions with choices" if answers is None else "other questions"
    return {
        "variant": name,
        "headline": change(row["headline"], other["headline"], "value"),
        "paired": pair(answers, other_answers) if paired else None,
        "not_paired": None if paired else reason,
        "recovered": change(row, other, "recovered"),
        "peak_gb": change(row["memory"], other["memory"], "peak_gb"),
        "checkpoint_gb": change(row["memory"], other["memory"], "checkpoint_gb"),
        "latency_s": change(row["latency"], other["latency"], "mean_s"),
    }


def change(row: dict, other: dict, key: str) -> dict:
    """Return a figure in both runs and their difference, which is None if either figure is missing or not resolved."""
    here, reference = row and row[key], other and other[key]
    difference = None if here is None or reference is None else here - reference
    return {"reference": reference, "here": here, "difference": difference}


def pair(answers: pd.DataFrame, reference: pd.DataFrame) -> dict:
    """Return the paired difference, and what changed on the same questions."""
    correct = pd.DataFrame({"here": answers["correct"], "reference": reference["correct"]})
    plain, resampled = metrics.scores(metrics.make("accuracy", metrics.SHARE, correct))
    differences = (resampled["here"] - resampled["reference"]).to_numpy()
    found = statistics.difference(plain["here"] - plain["reference"], differences)
    return found | statistics.compare(answers, reference)


def printed(run: dict) -> dict[str, pd.DataFrame]:
    """Return the comparison as tables, by title."""
    tables = {
        title: pd.DataFrame(run[title], columns=["key", "reference", "here"])
        for title in ("config", "workflow", "versions")
    }
    return tables | {"variants": pd.DataFrame(printed_variant(found, run["headline"]) for found in run["variants"])}


def printed_variant(found: dict, headline: dict) -> dict:
    """Return one row of the table of variants."""
    values, paired, form = found["headline"], found["paired"], tables.form_of(headline)
    return {
        "variant": found["variant"],
        headline["metric"]: " -> ".join(
            tables.between(values[side], None, form.replace("+", "")) for side in ("reference", "here")
        ),
        "difference": tables.between(values["difference"], paired and paired["difference_ci95"], form),
        "resolved": ("yes" if paired["resolved"] else tables.NOT_RESOLVED) if paired else found["not_paired"],
        "mcnemar_p": f"{paired['mcnemar_p']:.2g}" if paired else "",
        "recovered": " -> ".join(
            tables.between(found["recovered"][side], None, "{:.0%}") for side in ("reference", "here")
        ),
        **{name: shown_difference(found[name]["difference"]) for name in ("peak_gb", "checkpoint_gb", "latency_s")},
    }


def shown_difference(difference: float | None) -> str:
    """Return a difference as the table shows it: empty text where one of the runs has not measured it."""
    return "" if difference is None else f"{difference:+.4f}"


if __name__ == "__main__":
    errors.run(main)
