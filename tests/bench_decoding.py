"""Measure what a compiled decoding step costs in Python: bf16, torchao's int4 tensors, and the loader's plain buffers.

Gemma 3 12B's 48 layers, made narrow, on a CPU; the step is traced as for a GPU, and its kernels are left out, so that
what is left is what a GPU waits for.

    python tests/bench_decoding.py
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, StaticCache

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from int4_qat import int4, models

GROUP_SIZE, PROMPT, STEPS, ROUNDS = 128, 32, 20, 7
SHAPES = dict(vocab_size=1024, hidden_size=128, intermediate_size=256, num_attention_heads=2, num_key_value_heads=2)


def main() -> None:
    library = torch.library.Library("mslk", "FRAGMENT")  # without the kernel, which no CPU has
    for device in play_kernel_on(library):
        library.impl("bf16i4bf16_rowwise", lambda x, w, *_: x.new_empty(len(x), len(w)), device)
    steps = {name: compiled_step(prepare) for name, prepare in PREPARED.items()}
    milliseconds = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            milliseconds[name].append(1000 * (time.perf_counter() - start) / STEPS)
    for name, times in milliseconds.items():
        print(f"{name:16} {statistics.median(times):6.2f} ms a token")


def play_kernel_on(library: torch.library.Library) -> list[str]:
    """Where mslk's operator is to be played; without mslk it is defined first."""
    if hasattr(torch.ops.mslk, "bf16i4bf16_rowwise"):
        return ["CPU"]
    library.define("bf16i4bf16_rowwise(Tensor x, Tensor w, Tensor scale, Tensor zero_point) -> Tensor")
    return ["CPU", "Meta"]


def to_int4(model: torch.nn.Module) -> None:
    """Give every linear but the head torchao's tensor."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            quantized = int4.quantize(module.weight.detach(), GROUP_SIZE)
            module.weight = torch.nn.Parameter(models.to_torchao(quantized, GROUP_SIZE), requires_grad=False)


def to_plain_buffers(model: torch.nn.Module) -> None:
    """What the loader makes of torchao's tensors on mslk's path."""
    to_int4(model)
    models.unwrap_weights(model)


PREPARED = {"bf16": lambda model: None, "torchao's tensors": to_int4, "plain buffers": to_plain_buffers}


@torch.no_grad()
def compiled_step(prepare: Callable[[torch.nn.Module], None]) -> Callable[[], None]:
    """A step of a model of its own, traced and warm."""
    kinds = ["full_attention"] * 48
    config = Gemma3TextConfig(
        num_hidden_layers=48, head_dim=64, layer_types=kinds, max_position_embeddings=512, **SHAPES
    )
    model = Gemma3ForCausalLM(config).to(torch.bfloat16).eval()
    prepare(model)
    cache, tokens = StaticCache(config, max_cache_len=512), torch.randint(10, 1000, (1, PROMPT))
    model(input_ids=tokens, past_key_values=cache)
    backend = aot_autograd(fw_compiler=without_kernels, inference_compiler=without_kernels)
    forward, position = torch.compile(model, backend=backend), torch.tensor([[PROMPT]])

    @torch.no_grad()
    def step() -> None:
        forward(input_ids=tokens[:, :1], past_key_values=cache, position_ids=position)

    step(), step()
    return step


def without_kernels(graph: torch.fx.GraphModule, _) -> Callable[[list], list]:
    """What a graph returns, without what it computes."""
    outputs = [
        node.meta["val"] if isinstance(node, torch.fx.Node) else node for node in graph.graph.output_node().args[0]
    ]
    with unset_fake_temporarily():
        made = [
            torch.zeros(each.shape, dtype=each.dtype) if isinstance(each, torch.Tensor) else each for each in outputs
        ]

    def run(arguments: list) -> list:
        arguments.clear()
        return list(made)

    run._boxed_call = True
    return run


if __name__ == "__main__":
    main()
