"""Measure the recipe at the shapes of Gemma 3 12B, with random weights: training, export, memory, latency, MMLU.

Every step is a program of scripts/, run as a rule does, with the values of config.yaml. The JSON is written after each
step, so that it keeps the figures if a later step fails. If a step fails, the exit code is 1.

    python tests/bench/bench_gpu.py --folder /dev/shm/gemma --output gpu.json
    python tests/bench/bench_gpu.py --folder /tmp/tiny --output tiny.json --shapes tiny --device cpu --tokens 64

With Gemma's own tokenizer and MMLU (download_mmlu's folder), the benchmark also trains on the questions, whose lengths
differ, and scores MMLU, where random weights answer by chance:

    python tests/bench/bench_gpu.py --folder /dev/shm/gemma --output gpu.json --tokenizer models/gemma-3-270m \\
        --mmlu /data/mmlu_parquet --only quantize "finetune questions" mmlu

--gpus repeats on several GPUs of the host what can use them: training, MMLU, and latency in vLLM.

    python tests/bench/bench_gpu.py --folder /dev/shm/gemma --output gpus.json --gpus 1 2 --engines vllm \\
        --tokenizer models/gemma-3-270m --mmlu /data/mmlu_parquet --batch-sizes 1 64 \\
        --only quantize "finetune lora" "finetune qad" "mmlu all" "latency vllm compressed"
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.checkpoint import weight_files
from int4_qat.config import quantizations, recipes
from int4_qat.standin import gemma_folder, standin
from int4_qat.system import devices, files

ROOT = Path(__file__).parents[2]
MERGED = {"backend": "transformers", "quantization": "w4a16", "qat_target": "merged"}
EVERY_TOKEN = {"weight": 1, "tokens": "all", "temperature": 1}
ARMS = {
    "lora": {"backend": "transformers", "quantization": None},
    "base": {"backend": "transformers", "quantization": "w4a16", "qat_target": "base"},
    "merged": MERGED,
    "distilled": MERGED | {"distillation": EVERY_TOKEN},
    "qad": MERGED | {"distillation": EVERY_TOKEN, "grid_learning_rate": 1e-3},
    "unsloth_lora": {"backend": "unsloth", "quantization": None},
    "unsloth_qat": {"backend": "unsloth", "quantization": "int4", "qat_target": "base+lora_a"},
}
MMLU = {
    "all": ["--engine", "last_position", "--num-fewshot", 0],
    "few-shot 5": ["--engine", "last_position", "--num-fewshot", 5],
    "5 a subject": ["--engine", "last_position", "--num-fewshot", 0, "--limit", 5],
    "5 a subject stock": ["--engine", "stock", "--num-fewshot", 0, "--limit", 5],
}
PACKAGES = ("torch", "torchao", "transformers", "peft", "trl", "unsloth", "mslk-cuda", "vllm")
TRAINING_STEPS, WARM_UP_STEPS = 8, 3
VOCABULARY = 262_208
ROWS = 256
WINDOWS = 120  # for calibration: as many as ROWS texts of 512 tokens give
# torch.compile stops at mslk 1.1.0's kernel, which vLLM uses for torchao's layout.
CUDA_GRAPHS_ALONE = ["--compilation-config", '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}']
PEAK = re.compile(r"peak GPU memory ([\d.]+) GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, type=Path, help="folder for the checkpoints; about 60 GB for 12B")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for all figures")
    parser.add_argument("--shapes", default="12b", choices=list(SHAPES), help="shapes of the random weights")
    parser.add_argument("--layers", type=int, help="number of decoder layers of the text model; all if omitted")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--tokens", default=512, type=int, help="number of tokens per training row")
    parser.add_argument("--tokenizer", type=Path, help="folder with a Gemma 3 whose tokenizer is used")
    parser.add_argument("--mmlu", type=Path, help="folder written by download_mmlu; requires --tokenizer")
    parser.add_argument(
        "--engines", nargs="*", default=["transformers"], choices=["transformers", "vllm"], help="engines to measure"
    )
    parser.add_argument("--batch-sizes", nargs="+", default=[1], type=int, help="numbers of requests at once")
    parser.add_argument("--gpus", nargs="+", default=[1], type=int, help="numbers of GPUs to measure on")
    parser.add_argument("--spread", default="auto", help="whether trainings spread the frozen weights over the GPUs")
    parser.add_argument("--only", nargs="*", help="steps to run, by the beginnings of their names; all if omitted")
    arguments = parser.parse_args()
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    record = {"device": devices.name(arguments.device), "shapes": arguments.shapes, "versions": versions(), "steps": {}}
    model = arguments.folder / "model"
    if not model.exists():
        make_model(shapes_of(arguments), arguments)
    for name, command, output in steps(arguments, config):
        if arguments.only is None or name.startswith(tuple(arguments.only)):
            files.remove(output)  # the programs replace no folder
            record["steps"][name] = take(name, command, output)
            files.write_json(arguments.output, record)
            print(json.dumps({name: record["steps"][name]["figures"]}), flush=True)
    print(table(record))
    sys.exit(any(step["exit_code"] for step in record["steps"].values()))


def gemma(text: dict, vision: dict, image_tokens: int) -> Gemma3Config:
    """Return the config of google/gemma-3-12b-it with other shapes where they are given."""
    shapes = dict(
        vocab_size=VOCABULARY,
        hidden_size=3_840,
        intermediate_size=15_360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=1_024,
        max_position_embeddings=131_072,
    )
    vision_shapes = dict(
        hidden_size=1_152,
        intermediate_size=4_304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=896,
        patch_size=14,
        vision_use_head=False,
    )
    return Gemma3Config(
        text_config=Gemma3TextConfig(**shapes | text),
        vision_config=SiglipVisionConfig(**vision_shapes | vision),
        mm_tokens_per_image=image_tokens,
    )


SHAPES = {
    "12b": lambda: gemma({}, {}, 256),
    "27b": lambda: gemma(
        dict(
            hidden_size=5_376,
            intermediate_size=21_504,
            num_hidden_layers=62,
            num_attention_heads=32,
            num_key_value_heads=16,
            head_dim=128,
            query_pre_attn_scalar=168,
        ),
        {},
        256,
    ),
    "tiny": lambda: gemma(
        dict(vocab_size=10_240, hidden_size=128, intermediate_size=256, num_hidden_layers=2, head_dim=32),
        dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=28),
        4,
    ),
}


def shapes_of(arguments: argparse.Namespace) -> Gemma3Config:
    """Return the shapes that --shapes names, with as many decoder layers as --layers says."""
    shapes = SHAPES[arguments.shapes]()
    if arguments.layers:
        shapes.text_config.num_hidden_layers = arguments.layers
        shapes.text_config.layer_types = shapes.text_config.layer_types[: arguments.layers]
    return shapes


def make_model(config: Gemma3Config, arguments: argparse.Namespace) -> None:
    """Write a model of random weights with a tokenizer, and texts of --tokens invented words in the recipe's turns."""
    folder, tokens = arguments.folder, arguments.tokens
    generator = random.Random(0)
    words = ["".join(generator.choices(standin.SYLLABLES, k=3)) for _ in range(5_000)]
    turns = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\nAnswer: A<end_of_turn>\n"
    texts = [turns.format(" ".join(generator.choices(words, k=tokens - 16))) for _ in range(ROWS)]
    tokenizer = standin.build_tokenizer([" ".join(["x", *words]), *texts])
    if arguments.tokenizer:
        config.text_config.vocab_size = VOCABULARY
        own = AutoTokenizer.from_pretrained(arguments.tokenizer, extra_special_tokens=standin.PICTURE_TOKENS)
        cut = [own.decode(own(text, add_special_tokens=False)["input_ids"][: tokens - 16]) for text in texts]
        texts = [turns.format(text.removeprefix(turns.partition("{}")[0])) for text in cut]
    else:
        ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        config.update({"pad_token_id": ids["<pad>"], "bos_token_id": ids["<bos>"], "eos_token_id": ids["<eos>"]})
        config.boi_token_index, config.eoi_token_index = ids["<start_of_image>"], ids["<end_of_image>"]
        config.image_token_id = ids["<image_soft_token>"]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(arguments.device):
        model = Gemma3ForConditionalGeneration(config)
    with files.whole(folder / "model") as unfinished:
        gemma_folder.write_model(model.cpu(), tokenizer, unfinished)
        if arguments.tokenizer:
            own.save_pretrained(unfinished)
    torch.cuda.empty_cache()  # the steps run in other processes and need the whole GPU
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")


def steps(arguments: argparse.Namespace, config: dict):
    """Yield the name, command and main output of each step, in order."""
    folder, on = arguments.folder, ["--device", arguments.device]
    small = arguments.shapes == "tiny"
    config["finetune"]["arms"] = ARMS
    texts = {"": folder / "texts.parquet"}
    if arguments.mmlu:
        texts["questions "] = questions = folder / "questions.parquet"
        source = ["--mmlu", arguments.mmlu / "auxiliary_train.parquet", "--tokenizer", folder / "model"]
        yield "format questions", ["format_mmlu", *source, "--output", questions], questions
    for kind, arm, gpus in itertools.product(texts, ARMS, arguments.gpus):
        if recipes.recipe_of(config, arm)["backend"] == "unsloth" and (arguments.device == "cpu" or gpus > 1):
            continue
        recipe = recipes.training_of(recipes.recipe_of(config, arm))
        recipe |= {"max_steps": TRAINING_STEPS, "save_steps": TRAINING_STEPS}
        if arguments.device == "cpu":
            recipe |= {"dtype": "float32", "optim": "adamw_torch", "gradient_checkpointing": False}
        trained = f"{kind}{arm}{on_several(gpus)}"
        output = place(folder, trained)
        options = ["--model", folder / "model", "--texts", f"questions={texts[kind]}", "--recipe", json.dumps(recipe)]
        options += ["--processes", gpus, "--spread", arguments.spread]
        options += ["--checkpoints", output / "checkpoints", "--adapter", output / "adapter"]
        yield f"finetune {trained}", ["finetune", *options, "--log-table", output / "steps.csv", *on], output
    base = place(folder, f"base{on_several(arguments.gpus[0])}")
    adapter = ["--model", folder / "model", "--adapter", base / "adapter"]
    yield "merge", ["merge", *adapter, "--output", folder / "merged"], folder / "merged"
    chosen = config["calibration"]
    windows = ["--samples", 4 if small else WINDOWS, "--length", 32 if small else chosen["length"], "--seed", 0]
    windows += ["--batch-size", chosen["batch_size"], "--dtype", "float32" if small else chosen["dtype"]]
    scheme = json.dumps(quantizations.training_words(config["quantizations"]["gptq"])["scheme"])
    read = ["--checkpoint", folder / "model", "--scheme", scheme, "--texts", folder / "texts.parquet", *windows, *on]
    for method in ("gptq", "awq"):
        output = folder / method
        yield f"calibrate {method}", ["calibrate", *read, "--method", method, "--output", output], output
    entry = config["quantizations"]["w4a16"]
    words = quantizations.training_words(entry)
    scheme = ["--scheme", json.dumps(words["scheme"]), "--ignore", *words["ignore"], "--method", entry["method"]]
    source = folder / ("merged" if arguments.only is None or "merge" in arguments.only else "model")
    served = quantizations.SERVED[quantizations.VLLM]
    for name, word in {"int4": quantizations.LOADED, served: served}.items():
        options = ["--checkpoint", source, *scheme, "--format", word, "--output", folder / name]
        yield f"quantize {word}", ["quantize", *options], folder / name
    if source == folder / "merged":
        parity = [*adapter, "--checkpoint", folder / "int4", "--texts", folder / "texts.parquet", *on]
        yield "parity", ["check_parity", *parity, "--output", folder / "parity.json"], folder / "parity.json"
    precisions = {"bf16": folder / "model", "int4": folder / "int4"}
    for name, checkpoint in precisions.items():
        output = folder / f"memory_{name}.json"
        options = ["--checkpoint", checkpoint, "--dtype", "bfloat16", "--max-new-tokens", 8 if small else 128]
        yield f"memory {name}", ["measure_memory", *options, *on, "--output", output], output
    for name, checkpoint in precisions.items() if arguments.mmlu else ():
        mmlu = config["evaluation"]["mmlu"]
        options = ["--checkpoint", checkpoint, "--mmlu", arguments.mmlu, "--batch-size", mmlu["batch_size"]]
        options += ["--dtype", "bfloat16", *on]
        for (kind, changes), gpus in itertools.product(MMLU.items(), arguments.gpus):
            step = f"mmlu {kind} {name}{on_several(gpus)}"
            output = place(folder, f"{step}.json")
            written = ["--output", output, "--samples", output.with_suffix(".parquet")]
            yield step, ["evaluate_mmlu", *options, *changes, "--gpus", gpus, *written], output
    for engine in arguments.engines:
        latency = config["evaluation"]["latency"]
        timed = precisions | ({served: folder / served} if engine == "vllm" else {})
        for (name, checkpoint), gpus in itertools.product(timed.items(), arguments.gpus if engine == "vllm" else [1]):
            step = f"latency {engine} {name}{on_several(gpus)}"
            output = place(folder, f"{step}.json")
            lengths = ["--input-len", 8 if small else latency["input_len"]]
            lengths += ["--output-len", 8 if small else latency["output_len"], "--batch-sizes", *arguments.batch_sizes]
            rounds = ["--warmup", 2, "--iterations", 5, "--vllm-runs", folder / "vllm" / output.stem]
            rounds += ["--output", output]
            options = ["--checkpoint", checkpoint, "--engine", engine, "--dtype", "bfloat16", *lengths, *rounds, *on]
            if engine == "vllm":
                options += ["--gpus", gpus, "--", *(CUDA_GRAPHS_ALONE if name == "int4" else latency["vllm_arguments"])]
            yield step, ["measure_latency", *options], output
    if "vllm" in arguments.engines:
        serving, output = config["evaluation"]["serving"], folder / "serving.json"
        options = ["--checkpoint", folder / "int4", "--served", folder / served, "--dtype", "bfloat16", *on]
        options += ["--concurrency", *serving["concurrency"], "--max-tokens", serving["max_tokens"]]
        options += ["--time-limit", serving["time_limit"], "--vllm-runs", folder / "vllm" / output.stem]
        yield "serving", ["check_serving", *options, "--output", output, "--", *serving["vllm_arguments"]], output


def place(folder: Path, name: str) -> Path:
    """Return where a step writes, by its name."""
    return folder / name.replace(" ", "_")


def on_several(gpus: int) -> str:
    """Return the end of a step's name that says on how many GPUs it runs, which is empty for one."""
    return "" if gpus == 1 else f" on {gpus} GPUs"


def take(name: str, command: list, output: Path) -> dict:
    """Run one step; return its command, exit code and figures, with wall seconds and resident gigabytes.

    The resident memory is at least that of this program.
    """
    script, *options = map(str, command)
    words = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *options]
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    with open(f"{output}.log", "w") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    figures = {} if code else figures_of(name, output)
    if code:
        print(Path(f"{output}.log").read_text()[-2_000:], flush=True)
    figures |= {"wall_s": time.perf_counter() - start, "resident_gb": usage.ru_maxrss * 1024 / 1e9}
    return {"command": " ".join([script, *options]), "exit_code": code, "figures": figures}


def figures_of(name: str, output: Path) -> dict:
    """Return the figures that a step measured."""
    kind = name.split()[0]
    if kind == "finetune":
        rows = pd.read_csv(output / "steps.csv").iloc[WARM_UP_STEPS:]
        tokens = rows["tokens_per_second"].median()
        return {"tokens_per_s": tokens, "peak_gb": rows["peak_memory_gb"].max()}
    if kind in ("memory", "latency"):
        report = files.read_json(output)
        wanted = ("peak_gb", "weights_gb", "checkpoint_gb", "bandwidth_limit_percent", "int4_path")
        figures = {key: report[key] for key in wanted if key in report}
        return figures | {f"batch_{batch['batch_size']}_s": batch["mean_s"] for batch in report.get("batches", [])}
    if kind == "mmlu":
        return {"questions": sum(subject["questions"] for subject in files.read_json(output)["by_subject"].values())}
    if kind == "format":
        return {"rows": pq.read_metadata(output).num_rows}
    if kind in ("parity", "serving"):
        return {}
    figures = {"gb": weight_files.file_bytes(output) / 1e9}
    if kind == "calibrate" and (peak := PEAK.search(Path(f"{output}.log").read_text())):
        figures["peak_gb"] = float(peak[1])
    return figures


def table(record: dict) -> str:
    """Return a table of all figures, with one row per step."""
    rows = {name: step["figures"] | {"exit_code": step["exit_code"]} for name, step in record["steps"].items()}
    return pd.DataFrame.from_dict(rows, orient="index").to_string(float_format="%.3f", na_rep="")


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that decide the figures, and None for those that are not installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


if __name__ == "__main__":
    main()
