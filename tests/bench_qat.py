"""Measure a training step of LoRA, of both QAT targets, and of torchao's own fake quantization, side by side.

An untrained Gemma 3 text model of 111 million parameters in its linears, 1,024 tokens a step, one step of each in
turn. Peak memory is that of a process of its own.

    python tests/bench_qat.py
"""

import argparse
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

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from int4_qat import qat

KINDS = ("lora", "base", "merged", "torchao")
TOKENS, GROUP_SIZE, ROUNDS = 1024, 128, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-of", choices=KINDS, help="print the peak resident bytes of two steps of one kind")
    kind = parser.parse_args().memory_of
    if kind:
        take_step = make_step(kind)
        take_step(), take_step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    steps = {kind: make_step(kind) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS + 1):
        for kind, take_step in steps.items():
            start = time.perf_counter()
            take_step()
            seconds[kind].append(time.perf_counter() - start)
    print(f"{'':8} {'s/step':>8} {'x LoRA':>8} {'tokens/s':>9} {'peak GB':>8}")
    # the first round warms up
    medians = {kind: statistics.median(times[1:]) for kind, times in seconds.items()}
    for kind, median in medians.items():
        command = [sys.executable, __file__, "--memory-of", kind]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1e9
        print(f"{kind:8} {median:8.2f} {median / medians['lora']:8.2f} {TOKENS / median:9.0f} {peak:8.2f}")


def make_step(kind: str):
    """A function that takes one training step of an untrained model."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=1024,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        attn_implementation="sdpa",
    )
    lora = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(Gemma3ForCausalLM(config), lora)
    if kind == "torchao":
        weights = Int4WeightFakeQuantizeConfig(group_size=GROUP_SIZE, activation_dtype=torch.bfloat16)
        quantize_(model, QATConfig(weight_config=weights, step="prepare"), lambda _, name: name.endswith(".base_layer"))
    elif kind != "lora":
        qat.fake_quantize_linears(model, kind, GROUP_SIZE)
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    tokens = torch.randint(0, 1024, (4, TOKENS // 4))

    def take_step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return take_step


if __name__ == "__main__":
    main()
