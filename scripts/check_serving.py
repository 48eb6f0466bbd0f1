"""Serve a quantized model with vLLM as the card does, send the card's request, and measure how fast it is answered.

The server listens on a free loopback port and is stopped afterwards, whatever happens. Arguments after `--` go to
`vllm serve`. The check requires one well-formed answer, and that the most likely next token is among the most likely
ones of the same weights in transformers, since a server that had not loaded its weights would also answer. The
measurements, by `vllm bench serve`, let each answer run to --max-tokens. They are the time to the first token of each
request, and the tokens per second of all requests together, after as many requests that do not count.

    python scripts/check_serving.py --checkpoint results/demo/qad-w4a16/checkpoint \\
        --served results/demo/qad-w4a16/compressed-tensors --dtype bfloat16 --concurrency 1 8 64 --max-tokens 256 \\
        --output results/demo/qad-w4a16/serving.json
"""

import argparse
import http.client
import json
import multiprocessing
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import openai
import torch

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference, processes, vllm_process
from int4_qat.engines.vllm_process import HOST
from int4_qat.results.schema.serving import Answer, FirstToken, Load, Serving
from int4_qat.system import devices, errors, files, parallel, scratch
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization

MESSAGES = [{"role": "user", "content": "Give me a short introduction to large language models."}]
SAMPLING = {"temperature": 0.6, "top_p": 0.95}
TOP_K = 20
CANDIDATES = 5  # most likely next tokens in transformers; rounding can change the order of the first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder with the weights, for transformers")
    parser.add_argument("--served", required=True, type=Path, help="folder with the same weights, for vLLM")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES), help="number format of the model")
    parser.add_argument("--concurrency", required=True, type=int, nargs="+", help="numbers of simultaneous requests")
    parser.add_argument("--max-tokens", required=True, type=int, help="maximum number of tokens per answer")
    parser.add_argument("--time-limit", default=1800, type=float, help="seconds for the server to start, or to answer")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="device to run on")
    parser.add_argument("--gpus", default=1, type=int, help="number of GPUs over which vLLM spreads the model")
    parser.add_argument("--vllm-runs", default=Path("vllm"), type=Path, help="folder for vLLM's JSON files and logs")
    parser.add_argument("--output", required=True, type=Path, help="path of serving.json")
    parser.add_argument("vllm_arguments", nargs="*", help="more arguments for vllm serve, after `--`")
    arguments = parser.parse_args()
    arguments.of_gpus = vllm_process.shared_by(arguments.gpus, arguments.served)
    devices.claim(arguments.device, arguments.gpus)
    dtype = architecture.DTYPES[arguments.dtype]
    # This runs in a separate process, which leaves the GPU's memory to vLLM when it ends.
    spawn, end = multiprocessing.get_context("spawn"), parallel.end_with_parent
    with parallel.killed_in_one_line("transformers"), ProcessPoolExecutor(1, spawn, initializer=end) as pool:
        question, expected = pool.submit(likeliest_tokens, arguments.checkpoint, dtype, arguments.device).result()
    with served(arguments) as (client, startup_seconds):
        kernel = vllm_process.kernel_of(arguments.served, log_of(arguments))
        likeliest = check_likeliest(client, question, arguments, expected)
        answer = check_answer(client, arguments)
        load = [measure(client, requests, arguments) for requests in arguments.concurrency]
    files.write_json(
        arguments.output,
        Serving(
            answer=answer,
            likeliest_token=likeliest,
            likeliest_tokens_in_transformers=expected,
            load=load,
            startup_s=startup_seconds,
            engine="vllm",
            engine_version=version("vllm"),
            vllm_arguments=arguments.vllm_arguments,
            gpus=arguments.gpus,
            max_tokens=arguments.max_tokens,
            dtype=arguments.dtype,
            kernel=kernel,
            device=devices.name(arguments.device),
        ),
    )


def log_of(arguments: argparse.Namespace) -> Path:
    """Return the path of the server's log."""
    return arguments.vllm_runs / "serve.log"


@contextmanager
def served(arguments: argparse.Namespace) -> Iterator[tuple[openai.OpenAI, float]]:
    """Yield a client of a running server and the seconds until it was ready; turn a failed request into InputError."""
    port, log = free_port(), log_of(arguments)
    with scratch.plain(arguments.served) as folder:
        words = ["serve", folder, "--tokenizer", folder, "--served-model-name", arguments.served]
        words += ["--host", HOST, "--port", port, "--dtype", arguments.dtype]
        words += [*arguments.vllm_arguments, *arguments.of_gpus]
        with vllm_process.started(words, log) as process:
            startup_seconds = wait_for_health(process, port, arguments)
            loopback = openai.DefaultHttpxClient(trust_env=False)  # not through a proxy
            options = {"api_key": "none", "timeout": arguments.time_limit, "max_retries": 0, "http_client": loopback}
            try:
                yield openai.OpenAI(base_url=f"http://{HOST}:{port}/v1", **options), startup_seconds
            except openai.OpenAIError as error:
                raise InputError(
                    f"vllm serve: expected an answer, found none ({error}); {processes.last_lines(log)}"
                ) from None


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def wait_for_health(process: subprocess.Popen, port: int, arguments: argparse.Namespace) -> float:
    """Return the seconds until the server says that it is ready; raise InputError if it ends or the time is up."""
    start = time.monotonic()
    while (seconds := time.monotonic() - start) < arguments.time_limit:
        if process.poll() is not None:
            end = processes.last_lines(log_of(arguments))
            raise InputError(f"vllm serve ended with exit code {process.returncode}; {end}")
        with suppress(OSError):
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return seconds
        time.sleep(0.5)
    end = processes.last_lines(log_of(arguments))
    raise InputError(f"vllm serve was not ready after {arguments.time_limit:g} s; {end}")


@torch.no_grad()
def likeliest_tokens(checkpoint: Path, dtype: torch.dtype, device: str) -> tuple[list[int], list[str]]:
    """Return the question's token ids, and the next tokens that transformers finds most likely, the likeliest first.

    The ids begin with the template's bos, which a server may not add to plain text.
    """
    model, tokenizer = inference.load_model(checkpoint, dtype, device), tokenization.load_tokenizer(checkpoint)
    question = tokenizer(MESSAGES[0]["content"])["input_ids"]
    logits = model(torch.tensor([question], device=device)).logits[0, -1]
    return question, [tokenizer.decode([token]) for token in logits.topk(CANDIDATES).indices.tolist()]


def check_likeliest(
    client: openai.OpenAI, question: list[int], arguments: argparse.Namespace, expected: list[str]
) -> str:
    """Return the next token that vLLM finds most likely; raise InputError if transformers does not expect it."""
    response = client.completions.create(
        model=str(arguments.served),
        prompt=question,
        max_tokens=1,
        temperature=0,
        extra_body={"skip_special_tokens": False},
    )
    found = response.choices[0].text
    if found.strip() not in [token.strip() for token in expected]:
        raise InputError(
            f"{arguments.served}: expected one of {expected}, the likeliest tokens in transformers, found {found!r}"
        )
    return found


def check_answer(client: openai.OpenAI, arguments: argparse.Namespace) -> Answer:
    """Return the model's answer to the card's request; raise InputError if it is not well formed."""
    response = client.chat.completions.create(
        model=str(arguments.served),
        messages=MESSAGES,
        max_tokens=arguments.max_tokens,
        extra_body={"top_k": TOP_K},
        **SAMPLING,
    )
    answer = response.choices[0] if response.choices else None
    if not (answer and answer.message.content and answer.finish_reason in ("stop", "length")):
        raise InputError(
            f"vllm serve: expected a text that ends with 'stop' or 'length', found {response.model_dump_json()}"
        )
    return Answer(
        content=answer.message.content,
        finish_reason=answer.finish_reason,
        prompt_tokens=response.usage.prompt_tokens,
        completion_tokens=response.usage.completion_tokens,
    )


def measure(client: openai.OpenAI, requests: int, arguments: argparse.Namespace) -> Load:
    """Send the card's request `requests` times at once by `vllm bench serve`; raise InputError if any is unanswered."""
    name = f"serve_{requests}"
    log = arguments.vllm_runs / f"{name}.log"
    with scratch.folder() as folder, scratch.plain(arguments.served) as tokenizer:
        prompts = folder / "prompts.jsonl"
        prompts.write_text(json.dumps({"prompt": MESSAGES[0]["content"]}) + "\n")
        options = {
            "--backend": "openai-chat",
            "--base-url": str(client.base_url).removesuffix("/v1/"),
            "--endpoint": "/v1/chat/completions",
            "--model": arguments.served,
            "--tokenizer": tokenizer,
            "--dataset-name": "custom",
            "--dataset-path": prompts,
            "--custom-output-len": arguments.max_tokens,
            "--num-prompts": requests,
            "--num-warmups": requests,  # vLLM compiles some kernels when it first sees so many requests
            "--max-concurrency": requests,
            **{f"--{key.replace('_', '-')}": value for key, value in SAMPLING.items()},
            "--top-k": TOP_K,
            "--result-dir": folder,
            "--result-filename": f"{name}.json",
        }
        words = ["bench", "serve", *(word for pair in options.items() for word in pair), "--skip-chat-template"]
        print(f"running vllm bench serve with {requests} requests at once; log: {log}", flush=True)
        vllm_process.run([*words, "--ignore-eos", "--save-result", "--save-detailed"], log, arguments.time_limit)
        report = files.read_json(folder / f"{name}.json")
    files.write_json(arguments.vllm_runs / f"{name}.json", report)
    tokens = report["output_lens"]
    if report["completed"] != requests or set(tokens) != {arguments.max_tokens}:
        whole = tokens.count(arguments.max_tokens)
        found = f"expected {requests} answers of {arguments.max_tokens} tokens, found {whole}"
        raise InputError(f"{found}; {processes.last_lines(log_of(arguments))}")
    return Load(
        requests=requests,
        seconds=report["duration"],
        time_to_first_token_s=FirstToken(mean=fmean(report["ttfts"]), most=max(report["ttfts"])),
        tokens=sum(tokens),
        tokens_per_s=sum(tokens) / report["duration"],
    )


if __name__ == "__main__":
    errors.run(main)
