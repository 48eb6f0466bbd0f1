"""Measure the memory and seconds that distillation's loss adds to a step, at Gemma 3 12B's vocabulary and width.

The loss is the training's own, forward and backward, on random last hidden states of a student and a base that share a
head. Its memory is the peak above what is allocated before: the head, both states, and the gradient of the student's
states.

    python tests/bench/bench_distillation.py --device cuda
    python tests/bench/bench_distillation.py --vocabulary 1024 --width 64 --tokens 512     # tried out on a CPU
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.checkpoint.heads import Head, Reading
from int4_qat.training import distillation

REPEATS = 5
LOSSES = {
    "KL alone": ((0.0, 1.0), 1.0),
    "KL at temperature 2": ((0.0, 4.0), 2.0),
    "half KL, half cross-entropy": ((0.5, 0.5), 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=262_208, help="number of tokens in the vocabulary")
    parser.add_argument("--width", type=int, default=3840, help="size of the hidden states")
    parser.add_argument("--tokens", type=int, default=16_384, help="number of tokens per step")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    arguments = parser.parse_args()
    head = head_of(arguments.vocabulary, arguments.width, arguments.device)
    print(f"| {arguments.tokens:,} tokens, {arguments.vocabulary:,} words, {arguments.width:,} wide | GB | seconds |")
    print("|---|---|---|")
    for name, (weights, temperature) in LOSSES.items():
        memory, seconds = measure(head, arguments, weights, temperature)
        print(f"| {name} | {memory} | {seconds:.2f} |", flush=True)


def head_of(vocabulary: int, width: int, device: str) -> Head:
    """Return the head of a model of this vocabulary and width, whose body has almost no weights."""
    small = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 8}
    config = Gemma3TextConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=1, **small)
    with torch.device(device):
        return Head(Gemma3ForCausalLM(config).to(torch.bfloat16).requires_grad_(False))


def measure(head: Head, arguments: argparse.Namespace, weights: tuple, temperature: float) -> tuple[str, float]:
    """Return the memory in GB that a loss takes, an empty string on a CPU, and its median seconds."""
    generator = torch.Generator(arguments.device).manual_seed(0)
    shape = (arguments.tokens, arguments.width)
    student, base = (
        torch.randn(shape, generator=generator, device=arguments.device).to(torch.bfloat16) for _ in range(2)
    )
    student.requires_grad_().grad = torch.zeros_like(student)
    following = torch.zeros(arguments.tokens, dtype=torch.long, device=arguments.device)
    seconds, on_gpu = [], arguments.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    for _ in range(REPEATS):
        start = time.perf_counter()
        readings = Reading(student, head), Reading(base, head)
        distillation.loss(*readings, following, weights, temperature).backward()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    memory = f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}" if on_gpu else ""
    return memory, median(seconds)


if __name__ == "__main__":
    main()
