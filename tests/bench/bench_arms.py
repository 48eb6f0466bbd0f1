"""Which way of training wins on the stand-in? Run its arms over seeds and learning rates: mechanics, no advice.

What is recommended comes from real models (docs/recipes.md).

Each kind of training, with and without distillation, is an arm for each seed and learning rate. The workflow makes the
model, the data and base-int4; its programs train, export and score the arms, here in processes that share the seconds
of their imports. A run that is stopped goes on with what is missing; a changed program or config needs a new folder.
By default 120 arms, about an hour on two cores.

    python tests/bench/bench_arms.py --directory runs/arms
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import pandas as pd
import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_parity
import evaluate_mmlu
import finetune
import merge
import quantize
from int4_qat.config import layers, quantizations, recipes, variants
from int4_qat.results import metrics, statistics
from int4_qat.system import errors, files

ROOT = Path(__file__).parents[2]
QUANTIZATION = "int4"  # by the name that the config has for it
UNTRAINED = f"{variants.BASE}-{QUANTIZATION}"
KINDS = {
    "lora": {"quantization": None},
    "base": {"quantization": QUANTIZATION, "qat_target": "base"},
    "base+lora_a": {"quantization": QUANTIZATION, "qat_target": "base+lora_a"},
    "merged": {"quantization": QUANTIZATION, "qat_target": "merged"},
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
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="arms at a time")
    parser.add_argument("--output", type=Path, default=Path("arms.md"))
    arguments = parser.parse_args()
    default, given = (yaml.safe_load(path.read_text()) for path in (ROOT / "config.yaml", arguments.configfile))
    config = layers.of_run(default, given, {})
    trials = list(itertools.product(arguments.kinds, arguments.distillation_weights, arguments.learning_rates))
    config["finetune"]["arms"] = {
        arm_name(*trial, seed): KINDS[trial[0]]
        | {"distillation_weight": trial[1], "learning_rate": trial[2], "seed": seed}
        for trial in trials
        for seed in arguments.seeds
    }
    directory, (model,) = arguments.directory.resolve(), config["models"]
    run_workflow(arguments.configfile, directory, model)
    run_arms(config, directory, model, arguments.jobs)
    results = directory / "results" / model
    table = tabulate(results, trials, arguments.seeds)
    with files.whole(arguments.output) as unfinished:
        untrained = read(results, UNTRAINED).mean()
        unfinished.write_text(document(table, arguments, config["finetune"]["max_steps"], untrained))
    print(table.to_string(index=False))


def arm_name(kind: str, distillation: float, rate: float, seed: int) -> str:
    """A name that the config allows."""
    return f"{kind.replace('+', '_')}_distil{distillation:g}_lr{rate:g}_seed{seed}"


def run_workflow(configfile: Path, directory: Path, model: str) -> None:
    """What the arms share: the model, the texts, and what int4 alone scores."""
    targets = [
        f"results/{model}/{UNTRAINED}/mmlu_samples.parquet",
        f"results/{model}/train.parquet",
    ]
    settings = ["--profile", "profiles/demo", "--configfile", configfile.resolve(), "--directory", directory]
    subprocess.run([sys.executable, "-m", "snakemake", *map(str, [*settings, *targets])], cwd=ROOT, check=True)


def run_arms(config: dict, directory: Path, model: str, jobs: int) -> None:
    """Train, export and score all arms, each in a process of its own."""
    train = functools.partial(train_and_score, config, directory, model)
    arms = config["finetune"]["arms"]
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for _ in tqdm(pool.imap_unordered(train, arms), total=len(arms), unit="arm"):
            pass


def train_and_score(config: dict, directory: Path, model: str, arm: str) -> None:
    """The workflow's programs from adapter to scores, unless the scores are there; their words go into a log."""
    os.chdir(directory)
    own, exported = Path("results", model, arm), Path("results", model, f"{arm}-int4")
    if (exported / "mmlu_samples.parquet").exists():
        return
    own.mkdir(parents=True, exist_ok=True)
    with (own / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    base = ["--model", f"resources/models/{model}"]
    texts, adapter = f"results/{model}/train.parquet", ["--adapter", own / "adapter"]
    merged, checkpoint = own / "merged", ["--checkpoint", exported / "checkpoint"]
    int4, mmlu = config["quantizations"][QUANTIZATION], config["evaluation"]["mmlu"]
    settings = ["--recipe", json.dumps(recipes.training_of(recipes.recipe_of(config, arm)))]
    scoring = ["--mmlu", "resources/mmlu", "--num-fewshot", mmlu["num_fewshot"], "--batch-size", mmlu["batch_size"]]
    scoring += ["--dtype", mmlu["dtype"], "--engine", mmlu["engine"], "--output", exported / "mmlu.json"]
    outputs = ["--checkpoints", own / "checkpoints", *adapter, "--log-table", own / "training.csv"]
    run(finetune, *base, "--texts", f"questions={texts}", *settings, *outputs)
    run(merge, *base, *adapter, "--output", merged)
    run(quantize, "--checkpoint", merged, *quantize_options(int4), "--output", exported / "checkpoint")
    run(check_parity, *base, *adapter, *checkpoint, "--texts", texts, "--output", exported / "parity.json")
    run(evaluate_mmlu, *checkpoint, *scoring, "--samples", exported / "mmlu_samples.parquet")


def quantize_options(entry: dict) -> list[str]:
    """The options of quantize for an entry of the config, in the format that everything loads."""
    words = quantizations.training_words(entry)
    scheme = ["--scheme", json.dumps(words["scheme"]), "--ignore", *words["ignore"]]
    return [*scheme, "--method", entry["method"], "--format", quantizations.LOADED]


def run(program, *arguments: object) -> None:
    """One of the workflow's programs, in this process."""
    sys.argv = [program.__name__, *map(str, arguments)]
    program.main()


def tabulate(results: Path, trials: list[tuple], seeds: list[int]) -> pd.DataFrame:
    """int4 accuracy over seeds, and its difference from lora without distillation at the same rates and seeds."""
    names = {trial: [f"{arm_name(*trial, seed)}-int4" for seed in seeds] for trial in trials}
    correct = pd.DataFrame({name: read(results, name) for name in itertools.chain(*names.values())})
    accuracy, resampled = correct.mean(), metrics.scores(metrics.make("mmlu", metrics.SHARE, correct)).resampled
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


def document(table: pd.DataFrame, arguments: argparse.Namespace, steps: int, untrained: float) -> str:
    """Return the table with what it is of, in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        "# Arms on the stand-in\n\n"
        f"Made by `python tests/bench/bench_arms.py --directory runs/arms`: {len(arguments.seeds)} seeds of each row,\n"
        f"{steps} steps of training, on a small stand-in with invented facts, not Gemma. Intervals are of 95%, over\n"
        "seeds and questions. `against lora` is paired: the same questions, seed and learning rate, lora without\n"
        "distillation. `training differs by` is the relative difference of the logits in training from those of the\n"
        "deployed model.\n"
        f"{UNTRAINED}, without any training, scores {untrained:.2%}.\n\n{rows}\n"
    )


if __name__ == "__main__":
    errors.run(main)
