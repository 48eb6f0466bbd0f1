"""Which way of training wins on the stand-in? Run its arms over seeds and learning rates, and write docs/arms.md.

Each kind of training, with and without distillation, is an arm for each seed and learning rate; the workflow itself
trains, exports and scores them. A run that is stopped goes on with what is missing. By default 120 arms, hours.

    python tests/bench_arms.py --directory runs/arms
"""

import argparse
import itertools
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from int4_qat import errors, files, statistics, variants

ROOT = Path(__file__).parents[1]
KINDS = {
    "lora": {"qat_scheme": None},
    "base": {"qat_scheme": "int4", "qat_target": "base"},
    "base+lora_a": {"qat_scheme": "int4", "qat_target": "base+lora_a"},
    "merged": {"qat_scheme": "int4", "qat_target": "merged"},
}
KEY = ["subject", "index"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, type=Path, help="where the workflow runs")
    parser.add_argument(
        "--configfile", type=Path, default=ROOT / "profiles" / "demo" / "demo.yaml", help="of one model"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="two or more")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--distillation-weights", nargs="+", type=float, default=[0, 0.5])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "arms.md")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.configfile.read_text())
    recipes = list(itertools.product(arguments.kinds, arguments.distillation_weights, arguments.learning_rates))
    config["finetune"]["arms"] = {
        arm_name(*recipe, seed): KINDS[recipe[0]]
        | {"distillation_weight": recipe[1], "learning_rate": recipe[2], "seed": seed}
        for recipe in recipes
        for seed in arguments.seeds
    }
    compared = [variants.QUANTIZED_BASELINE, *(f"{arm}-int4" for arm in config["finetune"]["arms"])]
    config["variants"] = [variants.BASELINE, *compared]
    (model,) = config["models"]
    results = arguments.directory.resolve() / "results" / model
    run_workflow(config, arguments.directory.resolve(), compared, results)
    table = tabulate(results, recipes, arguments.seeds)
    with files.whole(arguments.output) as unfinished:
        unfinished.write_text(document(table, arguments))
    print(table.to_string(index=False))


def arm_name(kind: str, distillation: float, rate: float, seed: int) -> str:
    """A name that the config allows."""
    return f"{kind.replace('+', '_')}_distil{distillation:g}_lr{rate:g}_seed{seed}"


def run_workflow(config: dict, directory: Path, compared: list[str], results: Path) -> None:
    """Train, export and score all arms, as far as the table needs it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    targets = [results.relative_to(directory) / name / "mmlu_samples.parquet" for name in compared]
    targets += [results.relative_to(directory) / name / "parity.json" for name in compared[1:]]
    options = ["--profile", "profiles/demo", "--configfile", path, "--directory", directory]
    subprocess.run([sys.executable, "-m", "snakemake", *map(str, [*options, *targets])], cwd=ROOT, check=True)


def tabulate(results: Path, recipes: list[tuple], seeds: list[int]) -> pd.DataFrame:
    """int4 accuracy over seeds, and its difference from lora without distillation at the same rates and seeds."""
    names = {recipe: [f"{arm_name(*recipe, seed)}-int4" for seed in seeds] for recipe in recipes}
    correct = pd.DataFrame({name: read(results, name) for name in itertools.chain(*names.values())})
    accuracy, resampled = correct.mean(), statistics.pool(statistics.resample(correct), correct)
    rows = []
    for (kind, distillation, rate), own in names.items():
        found = statistics.over_seeds(accuracy[own].tolist(), resampled[own].to_numpy())
        reference = names.get(("lora", 0, rate))
        difference = reference and statistics.over_seeds(
            (accuracy[own].to_numpy() - accuracy[reference].to_numpy()).tolist(),
            resampled[own].to_numpy() - resampled[reference].to_numpy(),
        )
        parity = [files.read_json(results / name / "parity.json")["relative_logit_difference"] for name in own]
        rows.append(
            {
                "arm": kind,
                "distillation": distillation,
                "learning rate": rate,
                "int4 accuracy": interval(found, "{:.2%}"),
                "against lora": interval(difference, "{:+.2%}") if difference and reference != own else "",
                "sd between seeds": f"{found['sd_between_seeds']:.2%}",
                "training differs by": f"{sum(parity) / len(parity):.1e}",
            }
        )
    return pd.DataFrame(rows)


def read(results: Path, name: str) -> pd.Series:
    """Whether each question was answered right."""
    columns = [*KEY, "correct"]
    return pd.read_parquet(results / name / "mmlu_samples.parquet", columns=columns).set_index(KEY)["correct"]


def interval(found: dict, form: str) -> str:
    """A mean with its interval."""
    return f"{form.format(found['mean'])} [{', '.join(form.format(end) for end in found['ci95'])}]"


def document(table: pd.DataFrame, arguments: argparse.Namespace) -> str:
    """docs/arms.md."""
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        "# Arms on the stand-in\n\n"
        f"Made by `python tests/bench_arms.py`, {len(arguments.seeds)} seeds. Intervals are of 95%, over seeds and "
        "questions; `against lora` is paired: the same questions, seed and learning rate, lora without distillation. "
        "`training differs by` is the relative difference of the logits in training from those of the deployed model. "
        f"A small stand-in with invented facts, not Gemma.\n\n{rows}\n"
    )


if __name__ == "__main__":
    errors.run(main)
