"""Measure a training's settings on a real model: change one setting at a time, and report the KL that results.

A training uses the backend, texts and trainer of finetune.py, in this process, and starts at base-gptq or at the base
itself. The KL is measured on the deployed model, over windows of 1,024 tokens that are spread evenly over each held-out
text. --settings takes some of the settings below, by name, or NAME={...}; the configs in examples/ measure the best
setting in full.

    python tests/bench/bench_training.py --model models/gemma-3-270m --start /tmp/base-gptq/calibrated \\
        --questions /tmp/train.parquet --general /data/text/wikitext2_valid.txt /data/text/textbooks.txt \\
        --held-out /data/text/wikitext2_test.txt /data/text/gsm8k.txt --settings "as it is" 'r 128={"r": 128}'
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.checkpoint import architecture, loading
from int4_qat.checkpoint.heads import Head, Reading
from int4_qat.config import limits
from int4_qat.config.recipe import Recipe
from int4_qat.evaluation import divergence
from int4_qat.quantization import schemes
from int4_qat.tokenizer import tokenization, turns
from int4_qat.training import data, log_table
from int4_qat.training.backends import transformers
from int4_qat.training.recipe import Options

CONTEXT = 1024  # tokens per window
QUESTIONS, GENERAL = "questions", "general"  # in the settings, GENERAL stands for each general text
ALL_TOKENS = {"weight": 1.0, "tokens": "all", "temperature": 1.0}
AS_IT_IS = {
    "backend": "transformers",
    "qat_target": "merged",
    "ignore": [],
    "grid_learning_rate": 1e-3,
    "distillation": ALL_TOKENS,
    "texts": {QUESTIONS: 1, GENERAL: 1},
    "packing": True,
    "eval_steps": None,
    "allow_worse": True,
    "r": 64,
    "lora_alpha": 64,
    "lora_dropout": 0,
    "finetune_vision_layers": False,
    "dtype": "bfloat16",
    "max_seq_length": 512,
    "train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "warmup_steps": 10,
    "num_train_epochs": 1,
    "max_steps": 200,
    "learning_rate": 1e-4,
    "logging_steps": 10,
    "save_steps": 100_000,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "lr_scheduler_type": "cosine",
    "seed": 0,
}
SETTINGS = {
    "as it is": {},
    "seed 1": {"seed": 1},
    "rate 3e-5": {"learning_rate": 3e-5},
    "rate 3e-4": {"learning_rate": 3e-4},
    "rate 1e-3": {"learning_rate": 1e-3},
    "grids as they are": {"grid_learning_rate": None},
    "grids 1e-4": {"grid_learning_rate": 1e-4},
    "grids 3e-3": {"grid_learning_rate": 3e-3},
    "r 16": {"r": 16, "lora_alpha": 16},
    "r 128": {"r": 128, "lora_alpha": 128},
    "600 steps": {"max_steps": 600},
    "half the batch": {"train_batch_size": 8},
    "questions alone": {"texts": {QUESTIONS: 1}},
    "general text alone": {"texts": {GENERAL: 1}},
    "thrice the general text": {"texts": {QUESTIONS: 1, GENERAL: 3}},
    "temperature 2": {"distillation": ALL_TOKENS | {"temperature": 2.0}},
    "half cross-entropy": {"distillation": ALL_TOKENS | {"weight": 0.5}},
    "from rounding": {"start": None},
    "from rounding, rate 1e-3": {"start": None, "learning_rate": 1e-3, "grid_learning_rate": 3e-3},
    "no training": {"max_steps": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder with the model, in bf16")
    parser.add_argument("--start", required=True, type=Path, help="folder that calibrate.py wrote for this model")
    parser.add_argument("--questions", required=True, type=Path, help="parquet file written by format_mmlu")
    parser.add_argument("--general", required=True, type=Path, nargs="+", help="general texts to train on")
    parser.add_argument("--held-out", required=True, type=Path, nargs="+", help="held-out texts to measure on")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=list(SETTINGS),
        help="settings to measure, by name or as NAME={...}; all if omitted",
    )
    parser.add_argument("--changes", type=json.loads, default={}, help="changes to all settings, as JSON")
    parser.add_argument(
        "--zero-point", default=schemes.INTEGER, choices=[schemes.INTEGER, schemes.FLOAT], help="kind of zero points"
    )
    parser.add_argument("--windows", type=int, default=64, help="number of windows per held-out text")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="device to run on")
    arguments = parser.parse_args()
    names = [path.stem for path in arguments.general]
    if len({QUESTIONS, *names}) <= len(names):
        sys.exit(f"--general: expected different names, none of them {QUESTIONS}, found {', '.join(names)}")
    bench = Bench(arguments)
    print("| setting | " + " | ".join(f"{path.stem}: KL | nats" for path in arguments.held_out), end="")
    print(" | loss, first and last | seconds | peak memory |")
    print("|---" * (4 + 2 * len(arguments.held_out)) + "|", flush=True)
    for word in arguments.settings:
        name, _, changes = word.partition("={")
        print(
            f"| {name} | {' | '.join(bench.run(json.loads('{' + changes) if changes else SETTINGS[name]))} |",
            flush=True,
        )


class Bench:
    """The base's hidden states on the held-out texts, and the recipe that all trainings of a model share."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.tokenizer = tokenization.load_tokenizer(arguments.model)
        instruction, response = turns.propose(self.tokenizer)
        scheme = {"scheme": schemes.int4(128, arguments.zero_point).words}
        dtype = {} if arguments.device == "cuda" else {"dtype": "float32"}
        marks = {"instruction_part": instruction, "response_part": response}
        self.recipe = AS_IT_IS | scheme | marks | dtype | arguments.changes
        base = loading.load(arguments.model, architecture.DTYPES[self.recipe["dtype"]], arguments.device)
        self.texts = {path.stem: self.spread(path) for path in arguments.held_out}
        self.head = Head(base)
        self.base = {name: [self.read(base, window) for window in windows] for name, windows in self.texts.items()}

    def spread(self, path: Path) -> list[list[int]]:
        """Return windows that are spread evenly over a text."""
        found = divergence.windows(self.tokenizer, path.read_text(encoding="utf-8"), CONTEXT, None)[:-1]
        places = torch.linspace(0, len(found) - 1, min(self.arguments.windows, len(found))).long().tolist()
        return [found[place] for place in places]

    def read(self, model: PreTrainedModel, window: list[int]) -> torch.Tensor:
        """Return the last hidden states (tokens, width) of a window."""
        return divergence.last_hidden_states(model, [window])[0]

    def run(self, changes: dict) -> list[str]:
        """Train with a setting; return the cells of its row."""
        arguments, changes = self.arguments, dict(changes)
        start = changes.pop("start", arguments.start)
        settings = self.recipe | changes
        texts = {QUESTIONS: arguments.questions} | {path.stem: path for path in arguments.general}
        settings["texts"] = weights_of(settings["texts"], [path.stem for path in arguments.general])
        steps = settings["max_steps"]
        recipe = Recipe(**settings | {"max_steps": max(steps, settings["logging_steps"])})
        problems = list(limits.impossible(vars(recipe)))
        if problems:
            sys.exit(problems[0])
        torch._dynamo.reset()  # otherwise what one setting compiles could leave none of dynamo's limit for the next
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            places = {name: Path(work) / name for name in ("checkpoints", "adapter", "log_table")}
            options = Options(
                model=start or arguments.model,
                texts={name: texts[name] for name in recipe.texts},
                device=arguments.device,
                base=arguments.model,
                **places,
            )
            model = transformers.add_adapters(options.model, recipe, arguments.device)
            losses, trainer = ("", ""), None
            if steps:
                rows = data.tokenize(options.texts, self.tokenizer, recipe, Path(work))
                trainer = transformers.make_trainer(model, self.tokenizer, rows, recipe, options)
                trainer.train()
                table = log_table.table_of(trainer.state.log_history)["loss"]
                losses = f"{table.iloc[0]:.4f}", f"{table.iloc[-1]:.4f}"
        seconds = time.perf_counter() - begun
        peak = f"{torch.cuda.max_memory_reserved() / 1e9:.1f} GB" if arguments.device == "cuda" else ""
        deployed = model.get_base_model().eval()
        cells = [self.compare(deployed, name) for name in self.texts]
        del model, trainer, deployed
        gc.collect()
        return [*cells, ", ".join(losses), f"{seconds:.0f}", peak]

    @torch.no_grad()
    def compare(self, model: PreTrainedModel, name: str) -> str:
        """Return the KL and loss of a text, in nats per token."""
        sums, tokens = [], 0
        for window, states in zip(self.texts[name], self.base[name], strict=True):
            ids = torch.tensor(window, device=states.device)
            found = Reading(self.read(model, window), self.head)
            sums.append(divergence.compare(found, Reading(states, self.head), None, ids))
            tokens += len(window) - 1
        total = {key: sum(each[key] for each in divergence.on_host(sums)) for key in ("kl", "loss")}
        return f"{total['kl'] / tokens:.4f} | {total['loss'] / tokens:.4f}"


def weights_of(weights: dict[str, float], general: list[str]) -> dict[str, float]:
    """Return the weight of each text by name; each general text has the weight of GENERAL."""
    return {name: weight for word, weight in weights.items() for name in (general if word == GENERAL else [word])}


if __name__ == "__main__":
    main()
