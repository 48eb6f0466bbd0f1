"""Measure how long a batch of requests takes: generate a fixed number of tokens, many times over.

Engine `vllm` runs `vllm bench latency`, as the card does, and keeps its JSON and its log of every run in --vllm-runs;
arguments after `--` go to it. A folder in compressed-tensors runs on one of vLLM's int4 kernels, which the report
names. Engine `transformers` decodes greedily with a static cache; on a GPU the decoding step is compiled and recorded
as a CUDA graph. Where the GPU's memory bandwidth is known, `bandwidth_limit_percent` is the least time in which the
weights can be read once for each generated token, as a share of the measured time.

    python scripts/measure_latency.py --checkpoint results/demo/qat-int4/checkpoint --dtype float32 \\
        --engine transformers --input-len 256 --output-len 256 --batch-sizes 1 8 --warmup 10 --iterations 30 \\
        --repeats 3 --output results/demo/qat-int4/latency.json
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from int4_qat.checkpoint import architecture, text_model, weight_files
from int4_qat.engines import decoding, inference, processes, vllm_process
from int4_qat.quantization import packed_weight, plain_weight
from int4_qat.results.schema.latency import Batch, Latency
from int4_qat.system import devices, errors, files, scratch
from int4_qat.system.errors import InputError

PERCENTILES = (10, 25, 50, 75, 90, 99)
SMALLEST_TOKEN, TOKENS = 100, 10_000
SEED = 0


class Measured(NamedTuple):
    """What one batch size took: the seconds of each iteration of each repeat."""

    repeats: list[list[float]]
    cuda_graph: bool | None = None  # whether the decoding step was replayed as a CUDA graph; vLLM does not report it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the checkpoint, in bf16 or int4")
    parser.add_argument("--engine", required=True, choices=["transformers", "vllm"], help="engine to measure")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES), help="number format of the model")
    parser.add_argument("--input-len", required=True, type=int, help="number of tokens in the prompt")
    parser.add_argument("--output-len", required=True, type=int, help="number of tokens to generate")
    parser.add_argument("--batch-sizes", required=True, type=int, nargs="+", help="numbers of requests at once")
    parser.add_argument("--warmup", required=True, type=int, help="number of iterations that are not counted")
    parser.add_argument("--iterations", required=True, type=int, help="number of iterations that are counted")
    parser.add_argument("--repeats", default=1, type=int, help="number of measurements of each batch size")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--gpus", default=1, type=int, help="number of GPUs over which vLLM spreads the model")
    parser.add_argument("--vllm-runs", default=Path("vllm"), type=Path, help="folder for vLLM's JSON files and logs")
    parser.add_argument("--vllm-time-limit", default=3600, type=float, help="seconds allowed for one run of vLLM")
    parser.add_argument("--output", required=True, type=Path, help="path of latency.json")
    parser.add_argument("vllm_arguments", nargs="*", help="more arguments for vllm bench latency, after `--`")
    arguments = parser.parse_args()
    if arguments.engine == "transformers" and arguments.gpus > 1:
        raise InputError(f"gpu: expected 1 for measure_latency with engine transformers, found {arguments.gpus}")
    arguments.of_gpus = vllm_process.shared_by(arguments.gpus, arguments.checkpoint)
    devices.claim(arguments.device, arguments.gpus)
    measure = {"transformers": with_transformers, "vllm": with_vllm}[arguments.engine]
    weights = text_bytes(arguments.checkpoint, architecture.DTYPES[arguments.dtype]) / arguments.gpus  # per GPU
    batches = [batch_report(size, measured, weights, arguments) for size, measured in measure(arguments).items()]
    files.write_json(
        arguments.output,
        Latency(
            **batches[0],
            batches=batches,
            engine=arguments.engine,
            engine_version=version(arguments.engine),
            vllm_arguments=arguments.vllm_arguments,
            gpus=arguments.gpus,
            input_len=arguments.input_len,
            output_len=arguments.output_len,
            warmup=arguments.warmup,
            iterations=arguments.iterations,
            repeats=arguments.repeats,
            dtype=arguments.dtype,
            dequantized=arguments.engine == "transformers"
            and inference.is_dequantized(arguments.checkpoint, arguments.device),
            int4_path=int4_path(arguments),
            device=devices.name(arguments.device),
        ),
    )


def int4_path(arguments: argparse.Namespace) -> str | None:
    """Return the compute path of int4 weights; for vLLM it is the kernel that its log names."""
    if arguments.engine == "transformers" or not inference.is_int4(arguments.checkpoint):
        return inference.int4_path(arguments.checkpoint, arguments.device)
    logs = [log_of(size, repeat, arguments) for size in arguments.batch_sizes for repeat in range(arguments.repeats)]
    kernels = sorted({vllm_process.kernel_of(arguments.checkpoint, log) or plain_weight.METHOD for log in logs})
    if len(kernels) > 1:
        raise InputError(f"{arguments.vllm_runs}: expected one int4 kernel in all runs, found {', '.join(kernels)}")
    return kernels[0]


def batch_report(size: int, measured: Measured, weights: float, arguments: argparse.Namespace) -> Batch:
    """Return the figures of one batch size; weights is in bytes."""
    means = [fmean(latencies) for latencies in measured.repeats]
    latencies = torch.tensor(measured.repeats, dtype=torch.float64).flatten()
    mean = fmean(means)
    return Batch(
        batch_size=size,
        mean_s=mean,
        repeat_means_s=means,
        std_s=stdev(means) if len(means) > 1 else None,
        percentiles_s={str(p): latencies.quantile(p / 100).item() for p in PERCENTILES},
        latencies_s=latencies.tolist(),
        tokens_per_s=size * arguments.output_len / mean,
        bandwidth_limit_percent=bandwidth_limit_percent(
            weights, arguments.output_len, mean, devices.name(arguments.device)
        ),
        cuda_graph=measured.cuda_graph,
    )


def text_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes of the loaded weights that every generated token needs: those that a text passes through.

    Of an embedding a token needs one row, so an embedding counts only if it is the output head too.
    """
    model, stored = architecture.without_weights(folder), weight_files.stored_tensors(folder)
    reached = text_model.reached_parameters(model) - text_model.embeddings(model)
    weights = {key: packed_weight.weight_of(plain_weight.weight_of(key)) for key in stored}
    names = architecture.renamed(model, set(weights.values()))
    return sum(tensor.loaded_bytes(dtype) for key, tensor in stored.items() if names[weights[key]] in reached)


def bandwidth_limit_percent(weights: float, tokens: int, seconds: float, device: str) -> float | None:
    """Return the least time to read the bytes of weights for each token, in percent of seconds; None if unknown."""
    bandwidth = devices.BANDWIDTHS.get(device)
    return bandwidth and 100 * weights * tokens / bandwidth / seconds


def with_vllm(arguments: argparse.Namespace) -> dict[int, Measured]:
    """Return what each batch size took, by size."""
    with scratch.plain(arguments.checkpoint) as folder, scratch.folder() as cache:
        return {
            size: Measured(
                [bench_latency(folder, cache, size, repeat, arguments) for repeat in range(arguments.repeats)]
            )
            for size in arguments.batch_sizes
        }


def log_of(size: int, repeat: int, arguments: argparse.Namespace) -> Path:
    """Return the path of vLLM's log of one run."""
    return arguments.vllm_runs / f"latency_batch{size}_repeat{repeat}.log"


def bench_latency(folder: Path, cache: Path, size: int, repeat: int, arguments: argparse.Namespace) -> list[float]:
    """Run `vllm bench latency` once and return the latencies; the first run compiles for all that share a cache."""
    log = log_of(size, repeat, arguments)
    report = log.with_suffix(".json")
    report.unlink(missing_ok=True)
    options = {
        "--model": folder,
        "--dtype": arguments.dtype,
        "--input-len": arguments.input_len,
        "--output-len": arguments.output_len,
        "--batch-size": size,
        "--num-iters-warmup": arguments.warmup,
        "--num-iters": arguments.iterations,
        "--output-json": report,
    }
    words = ["bench", "latency", *(word for pair in options.items() for word in pair)]
    words += [*arguments.vllm_arguments, *arguments.of_gpus]
    print(
        f"running vllm bench latency, batch size {size}, repeat {repeat + 1} of {arguments.repeats}; log: {log}",
        flush=True,
    )
    vllm_process.run(words, log, arguments.vllm_time_limit, cache)
    vllm_process.kernel_of(arguments.checkpoint, log)  # a fallback ends the job here, not after all runs
    return read_latencies(report, log, arguments.iterations)


def read_latencies(report: Path, log: Path, iterations: int) -> list[float]:
    """Return the latencies in vLLM's JSON.

    Raise InputError with vLLM's last log lines if the JSON is missing, cut short or incomplete.
    """
    try:
        latencies = files.read_json(report).get("latencies", [])
    except InputError as error:
        raise InputError(f"{error}; {processes.last_lines(log)}") from None
    if len(latencies) != iterations:
        found = f"expected {iterations} latencies, found {len(latencies)}"
        raise InputError(f"{report}: {found}; {processes.last_lines(log)}")
    return latencies


def with_transformers(arguments: argparse.Namespace) -> dict[int, Measured]:
    """Return what each batch size took, by size."""
    model = inference.load_model(arguments.checkpoint, architecture.DTYPES[arguments.dtype], arguments.device)
    return {size: time_batch(model, size, arguments) for size in arguments.batch_sizes}


def time_batch(model: PreTrainedModel, size: int, arguments: argparse.Namespace) -> Measured:
    """Return what one batch size took, on random tokens."""
    torch.compiler.reset()  # each size is compiled separately, and PyTorch gives up after too many
    generator = torch.Generator().manual_seed(SEED)
    highest = min(TOKENS, model.config.get_text_config().vocab_size)
    prompts = torch.randint(SMALLEST_TOKEN, highest, (size, arguments.input_len), generator=generator)
    decoder = decoding.GreedyDecoder(model, arguments.input_len + arguments.output_len)
    repeats = [time_decoder(decoder, prompts.to(arguments.device), arguments) for _ in range(arguments.repeats)]
    return Measured(repeats, decoder.cuda_graph)


def time_decoder(decoder: decoding.GreedyDecoder, prompts: torch.Tensor, arguments: argparse.Namespace) -> list[float]:
    """Return the seconds of each iteration that counts."""
    latencies = []
    for iteration in tqdm(range(arguments.warmup + arguments.iterations), desc="latency", mininterval=1):
        synchronize(arguments.device)
        start = time.perf_counter()
        decoder(prompts, arguments.output_len)
        synchronize(arguments.device)
        if iteration >= arguments.warmup:
            latencies.append(time.perf_counter() - start)
    return latencies


def synchronize(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    errors.run(main)
