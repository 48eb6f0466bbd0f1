"""Time the tokens of vLLM or of the engine transformers, and list the kernels on which a GPU spends a token's time.

The model continues prompts of --input-len random tokens in this process and ignores end tokens. A token's time is that
of --output-len tokens less that of one token, divided by --output-len less one. Its kernels come from two more runs
under the profiler, of one token and of at most PROFILED tokens.

    python tests/bench/bench_decoding.py --engine vllm --checkpoint /dev/shm/gemma/compressed-tensors --output step.json
    python tests/bench/bench_decoding.py --engine vllm --checkpoint ... --vllm '{"linear_backend": "marlin"}' ...
    python tests/bench/bench_decoding.py --engine transformers --checkpoint /tmp/tiny/int4 --device cpu --output t.json
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from int4_qat.checkpoint import architecture
from int4_qat.engines import decoding, inference
from int4_qat.system import devices, files

ROUNDS, SHOWN, PROFILED = 5, 30, 32
Continue = Callable[[torch.Tensor, int], object]  # continues prompts (texts, tokens) by a number of tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True, choices=["transformers", "vllm"], help="engine to measure")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--output", required=True, type=Path, help="JSON file for all figures")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1], help="numbers of requests at once")
    parser.add_argument("--input-len", type=int, default=256, help="number of tokens in the prompt")
    parser.add_argument("--output-len", type=int, default=64, help="number of tokens to generate")
    parser.add_argument("--vllm", type=json.loads, default={}, help="more options for vLLM's LLM class, as JSON")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="device to run on")
    arguments = parser.parse_args()
    start = time.perf_counter()
    made = {"transformers": of_transformers, "vllm": of_vllm}[arguments.engine](arguments)
    record = {"device": devices.name(arguments.device), "start_s": time.perf_counter() - start, "batches": {}}
    for size in arguments.batch_sizes:
        generator = torch.Generator().manual_seed(size)
        prompts = torch.randint(100, 10_000, (size, arguments.input_len), generator=generator).to(arguments.device)
        record["batches"][size] = batch = measure(made(), prompts, arguments)
        files.write_json(arguments.output, record)
        clock = f"{batch['whole_s']:.3f} s, {batch['ms_per_token']:.3f} ms per token, GPU busy for"
        print(f"{size} at once: {clock} {batch['busy_ms']:.3f} ms")
        for name, milliseconds in list(batch["kernels_ms"].items())[:SHOWN]:
            print(f"{milliseconds:9.4f} ms  {name[:120]}", flush=True)


def of_transformers(arguments: argparse.Namespace) -> Callable[[], Continue]:
    """Return a function that makes a decoder of the engine; each decoder takes a single number of prompts."""
    model = inference.load_model(arguments.checkpoint, architecture.DTYPES["bfloat16"], arguments.device)

    def decoder() -> Continue:
        torch.compiler.reset()
        return decoding.GreedyDecoder(model, arguments.input_len + arguments.output_len)

    return decoder


def of_vllm(arguments: argparse.Namespace) -> Callable[[], Continue]:
    """Return a function that returns vLLM's continuation, which takes any number of prompts."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the profiler would not see another process
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(arguments.checkpoint),
        dtype="bfloat16",
        **{"max_model_len": 1024, "enable_prefix_caching": False} | arguments.vllm,
    )

    def run(prompts: torch.Tensor, tokens: int) -> None:
        options = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": row} for row in prompts.tolist()], options, use_tqdm=False)

    return lambda: run


def measure(run: Continue, prompts: torch.Tensor, arguments: argparse.Namespace) -> dict:
    """Return the seconds of all tokens and, for one token, the milliseconds, in total and in each kernel of a GPU."""
    run(prompts, arguments.output_len)
    whole, first = (
        median(seconds(run, prompts, tokens) for _ in range(ROUNDS)) for tokens in (arguments.output_len, 1)
    )
    profiled = min(arguments.output_len, PROFILED)
    of_more, of_first = (kernels(run, prompts, tokens) for tokens in (profiled, 1))
    of_more.subtract(of_first)
    return {
        "whole_s": whole,
        "first_token_ms": 1e3 * first,
        "ms_per_token": 1e3 * (whole - first) / (arguments.output_len - 1),
        "busy_ms": sum(of_more.values()) / (profiled - 1),
        "kernels_ms": {name: milliseconds / (profiled - 1) for name, milliseconds in of_more.most_common()},
    }


def kernels(run: Continue, prompts: torch.Tensor, tokens: int) -> Counter[str]:
    """Return the milliseconds of each kernel of a GPU in a continuation."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        seconds(run, prompts, tokens)
    spent: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            spent[event.name] += (event.time_range.end - event.time_range.start) / 1e3
    return spent


def seconds(run: Continue, prompts: torch.Tensor, tokens: int) -> float:
    """Return how long a continuation takes."""
    if prompts.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(prompts, tokens)
    if prompts.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
