"""Measure a training step of LoRA, of both QAT targets, and of torchao's own fake quantization, side by side.

The model is an untrained Gemma 3 text model; one step of each kind is taken in turn. On a CPU, its linears have 111
million parameters and a step has 1,024 tokens; on a GPU, it has eight layers of the 12B model and a step has 8,192
tokens. Peak memory is measured in a separate process for each kind.

    python tests/bench/bench_qat.py
    python tests/bench/bench_qat.py --device cuda
"""

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization import quantize_
from torchao.quantization.qat import QATConfig
from torchao.quantization.qat.fake_quantize_config import Int4WeightFakeQuantizeConfig
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.quantization import schemes
from int4_qat.training import qat

KINDS = ("lora", "base", "merged", "torchao")
GROUP_SIZE, WARM_UP, ROUNDS = 128, 2, 7
SHAPES = {
    "cpu": dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=4, num_attention_heads=8),
    "cuda": dict(hidden_size=3840, intermediate_size=15360, num_hidden_layers=8, num_attention_heads=16),
}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
ROWS = {"cpu": (4, 256), "cuda": (16, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-of", choices=KINDS, help="only print the peak bytes of two steps of this kind")
    parser.add_argument("--device", default="cpu", choices=list(SHAPES), help="device to run on")
    arguments = parser.parse_args()
    if arguments.memory_of:
        take_step = make_step(arguments.memory_of, arguments.device)
        take_step(), take_step()
        print(peak_bytes(arguments.device))
        return
    # This comes first: a process's peak starts at that of its parent, which holds no model yet.
    peaks = {kind: measure_peak(kind, arguments.device) for kind in KINDS}
    seconds = {kind: median_seconds(steps) for kind, steps in time_steps(arguments.device).items()}
    tokens = math.prod(ROWS[arguments.device])
    print(f"{'':8} {'s/step':>8} {'x LoRA':>8} {'tokens/s':>9} {'peak GB':>8}")
    for kind, median in seconds.items():
        ratio, rate = median / seconds["lora"], tokens / median
        print(f"{kind:8} {median:8.3f} {ratio:8.2f} {rate:9.0f} {peaks[kind] / 1e9:8.2f}")


def measure_peak(kind: str, device: str) -> int:
    """Return the peak bytes of two steps in a separate process."""
    command = [sys.executable, __file__, "--memory-of", kind, "--device", device]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def time_steps(device: str) -> dict[str, list[float]]:
    """Return the seconds of each step of each kind, with the kinds in turn."""
    steps = {kind: make_step(kind, device) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(WARM_UP + ROUNDS):
        for kind, take_step in steps.items():
            start = time.perf_counter()
            take_step()
            seconds[kind].append(time.perf_counter() - start)
    return seconds


def median_seconds(seconds: list[float]) -> float:
    return statistics.median(seconds[WARM_UP:])


def peak_bytes(device: str) -> int:
    """Return the most memory that this process has held: that of tensors on a GPU, the resident set on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_step(kind: str, device: str):
    """Return a function that takes one training step of an untrained model."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=1024,
        **SHAPES[device],
        num_key_value_heads=4,
        head_dim=256,
        attn_implementation="sdpa",
    )
    lora = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(Gemma3ForCausalLM(config).to(device, DTYPES[device]), lora)
    if kind == "torchao":
        weights = Int4WeightFakeQuantizeConfig(group_size=GROUP_SIZE, activation_dtype=torch.bfloat16)
        quantize_(model, QATConfig(weight_config=weights, step="prepare"), lambda _, name: name.endswith(".base_layer"))
    elif kind != "lora":
        qat.fake_quantize_linears(model, kind, schemes.int4(GROUP_SIZE))
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    tokens = torch.randint(0, 1024, ROWS[device], device=device)

    def take_step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return take_step


if __name__ == "__main__":
    main()
