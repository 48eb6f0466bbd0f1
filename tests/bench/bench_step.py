"""Time training steps at the shapes of Gemma 3 12B, and list the kernels that a step's time goes to.

A training uses the backend, rows and trainer of finetune.py, in this process, on random weights and on texts of
--tokens invented words each, or on --texts. --arms takes arms of bench_gpu.py, or NAME={...} to override their
settings. What the kernels of the last step leave of the median step is the time in which the GPU waits.

    python tests/bench/bench_step.py --folder /dev/shm/step --layers 12 --output step.json
    python tests/bench/bench_step.py --folder /dev/shm/gemma --texts /dev/shm/gemma/questions.parquet --output step.json
    python tests/bench/bench_step.py --folder /tmp/tiny --shapes tiny --device cpu --tokens 64 --output tiny.json
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import torch
import yaml
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parent))

import bench_gpu
from int4_qat.config import recipes
from int4_qat.system import devices, files
from int4_qat.tokenizer import tokenization
from int4_qat.training import data
from int4_qat.training.backends import transformers
from int4_qat.training.recipe import Options, Recipe

STEPS, WARM_UP = 8, 3
KINDS = {  # kinds of kernels, by parts of their names; the first match counts
    "attention": ("flash", "fmha", "attention", "softmax"),
    "matrix products": ("gemm", "nvjet", "cutlass", "sm90_xmma", "cublas"),
    "deployed weight": ("_deploy", "_sum_gradients"),
    "compiled": ("triton",),
    "casts and copies": ("copy", "memcpy", "memset", "cat"),
    "element by element": ("elementwise", "reduce", "vectorized"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="folder for the model")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for all figures")
    parser.add_argument("--shapes", default="12b", choices=list(bench_gpu.SHAPES), help="shapes of the random weights")
    parser.add_argument("--layers", type=int, help="number of decoder layers of the text model; all if omitted")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--tokens", default=512, type=int, help="number of tokens per training row")
    parser.add_argument("--texts", type=Path, help="parquet file with other texts to train on, in the column text")
    parser.add_argument("--tokenizer", type=Path, help="folder with a Gemma 3 whose tokenizer is used")
    parser.add_argument(
        "--arms", nargs="+", default=["lora", "base", "merged"], help="arms to train, by name or as NAME={...}"
    )
    parser.add_argument("--part", type=int, help="tokens that go through the model at once; training's own if omitted")
    arguments = parser.parse_args()
    if not (arguments.folder / "model").exists():
        bench_gpu.make_model(bench_gpu.shapes_of(arguments), arguments)
    record = {"device": devices.name(arguments.device), "versions": bench_gpu.versions(), "arms": {}}
    for word in arguments.arms:
        name, _, changes = word.partition("={")
        recipe = recipe_of(arguments, name, json.loads("{" + changes) if changes else {})
        try:
            record["arms"][name] = measure(arguments, recipe)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            record["arms"][name] = {"error": str(error)[:2_000]}
        files.write_json(arguments.output, record)
        print(name, json.dumps(record["arms"][name], indent=1), flush=True)


def recipe_of(arguments: argparse.Namespace, name: str, changes: dict) -> Recipe:
    """Return the recipe of an arm with some settings changed."""
    config = yaml.safe_load((bench_gpu.ROOT / "config.yaml").read_text())
    config["finetune"]["arms"] |= bench_gpu.ARMS
    arm = changes.pop("arm", name)
    settings = recipes.training_of(recipes.recipe_of(config, arm)) | {"max_steps": STEPS, "save_steps": 10_000}
    if arguments.device == "cpu":
        settings |= {"dtype": "float32", "optim": "adamw_torch", "gradient_checkpointing": False}
    return Recipe(**settings | {"texts": {"questions": 1}, "logging_steps": 1, "allow_worse": True} | changes)


class Timer(TrainerCallback):
    """A callback that keeps the seconds of each step, and the profile of the last one instead of its seconds."""

    def __init__(self, on_gpu: bool):
        self.on_gpu, self.seconds, self.begun, self.profile = on_gpu, [], 0.0, None

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = self.now()
        if state.global_step == STEPS - 1:
            self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profile.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        now = self.now()
        if self.profile:
            self.profile.__exit__(None, None, None)
        else:
            self.seconds.append(now - self.begun)


def measure(arguments: argparse.Namespace, recipe: Recipe) -> dict:
    """Train a few steps; return tokens per second, peak memory, and milliseconds of a step by kind and by kernel."""
    gc.collect()
    torch._dynamo.reset()
    on_gpu = arguments.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as work:
        places = {name: Path(work) / name for name in ("checkpoints", "adapter", "log_table")}
        texts = {"questions": arguments.texts or arguments.folder / "texts.parquet"}
        model = arguments.folder / "model"
        options = Options(model=model, texts=texts, device=arguments.device, base=model, **places)
        tokenizer = tokenization.load_tokenizer(model)
        trained = transformers.add_adapters(model, recipe, arguments.device)
        rows = data.tokenize(texts, tokenizer, recipe, Path(work))
        trainer = transformers.make_trainer(trained, tokenizer, rows, recipe, options)
        trainer.tokens_at_once = arguments.part or trainer.tokens_at_once
        timer = Timer(on_gpu)
        trainer.add_callback(timer)
        trainer.train()
    seconds = pd.Series(timer.seconds[WARM_UP:]).median()
    tokens = trainer.state.num_input_tokens_seen / STEPS
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    figures = {"tokens_per_s": tokens / seconds, "s_per_step": seconds, "first_step_s": timer.seconds[0]}
    figures |= {"losses": losses, "tokens_at_once": trainer.tokens_at_once}
    if on_gpu:
        figures["peak_gb"] = torch.cuda.max_memory_reserved() / 1e9
        figures["allocated_gb"] = torch.cuda.max_memory_allocated() / 1e9
    figures |= by_kernel(timer.profile, on_gpu)
    return figures | {"ms_left": 1e3 * seconds - sum(figures["ms_by_kind"].values())}


def by_kernel(found: profile, on_gpu: bool) -> dict:
    """Return the milliseconds of each kind of kernel, and of the 25 kernels that take most, with their counts."""
    kinds, kernels = Counter(), {}
    for event in found.key_averages():
        if on_gpu and (event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation):
            continue
        milliseconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
        name = event.key.lower()
        kinds[next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")] += (
            milliseconds
        )
        kernels[event.key[:110]] = (milliseconds, event.count)
    largest = sorted(kernels.items(), key=lambda pair: -pair[1][0])[:25]
    return {"ms_by_kind": dict(kinds), "ms_by_kernel": dict(largest)}


if __name__ == "__main__":
    main()
