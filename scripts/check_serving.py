"""Serve a checkpoint with vLLM, as the card does, ask it what the card asks, and measure how fast it answers.

The server listens on a free loopback port and is gone afterwards, whatever happens. What stands after `--` goes to
`vllm serve`. The check is one answer, well formed, and that the likeliest next token is among the likeliest of the
same checkpoint in transformers: a server that had not loaded its weights would talk too. The measurements let each
answer run to --max-tokens: the time to the first token of each request, and the tokens per second of all together.

    python scripts/check_serving.py --checkpoint results/demo/qat-int4/checkpoint --dtype bfloat16 \\
        --concurrency 1 8 --max-tokens 256 --output results/demo/qat-int4/serving.json
"""

import argparse
import http.client
import multiprocessing
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import openai
import torch

from int4_qat.checkpoint import architecture
from int4_qat.engines import inference, processes, vllm_process
from int4_qat.results.schema.serving import Answer, FirstToken, Load, Serving
from int4_qat.system import devices, errors, files
from int4_qat.system.errors import InputError
from int4_qat.tokenizer import tokenization

MESSAGES = [{"role": "user", "content": "Give me a short introduction to large language models."}]
SAMPLING = {"temperature": 0.6, "top_p": 0.95}
TOP_K = 20
CANDIDATES = 5  # next tokens of transformers; rounding can change the order of the first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder, bf16 or int4")
    parser.add_argument("--dtype", required=True, choices=list(architecture.DTYPES))
    parser.add_argument("--concurrency", required=True, type=int, nargs="+", help="numbers of requests at once")
    parser.add_argument("--max-tokens", required=True, type=int, help="most tokens of an answer")
    parser.add_argument("--time-limit", default=1800, type=float, help="seconds for the start, and for an answer")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--vllm-log", default=Path("vllm_serve.log"), type=Path, help="file for the server's log")
    parser.add_argument("--output", required=True, type=Path, help="serving.json")
    parser.add_argument("vllm_arguments", nargs="*", help="after `--`: more arguments for vllm serve")
    arguments = parser.parse_args()
    devices.claim(arguments.device)
    dtype = architecture.DTYPES[arguments.dtype]
    # In a process of its own, which leaves the GPU's memory to vLLM.
    spawn, end = multiprocessing.get_context("spawn"), processes.end_with_parent
    with ProcessPoolExecutor(1, spawn, initializer=end) as pool:
        question, expected = pool.submit(likeliest_tokens, arguments.checkpoint, dtype, arguments.device).result()
    with (
        processes.readable(arguments.checkpoint, dtype, arguments.device) as folder,
        served(folder, arguments) as (client, startup_seconds),
    ):
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
            max_tokens=arguments.max_tokens,
            dtype=arguments.dtype,
            dequantized=inference.is_dequantized(arguments.checkpoint, arguments.device),
            device=devices.name(arguments.device),
        ),
    )


@contextmanager
def served(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[openai.OpenAI, float]]:
    """A client of a server that is up, and the seconds that took; a failed request is an InputError."""
    port = free_port()
    words = ["serve", folder, "--tokenizer", folder, "--served-model-name", arguments.checkpoint]
    words += ["--host", "127.0.0.1", "--port", port, "--dtype", arguments.dtype, *arguments.vllm_arguments]
    with vllm_process.started(words, arguments.vllm_log) as process:
        startup_seconds = wait_for_health(process, port, arguments)
        loopback = openai.DefaultHttpxClient(trust_env=False)  # not through a proxy
        options = {"api_key": "none", "timeout": arguments.time_limit, "max_retries": 0, "http_client": loopback}
        try:
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", **options), startup_seconds
        except openai.OpenAIError as error:
            raise InputError(f"no answer ({error}); {processes.last_lines(arguments.vllm_log)}") from None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_health(process: subprocess.Popen, port: int, arguments: argparse.Namespace) -> float:
    """Seconds until the server says that it is ready; InputError if it ends or the time is over."""
    start = time.monotonic()
    while (seconds := time.monotonic() - start) < arguments.time_limit:
        if process.poll() is not None:
            end = processes.last_lines(arguments.vllm_log)
            raise InputError(f"vllm serve ended with exit code {process.returncode}; {end}")
        with suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return seconds
        time.sleep(0.5)
    end = processes.last_lines(arguments.vllm_log)
    raise InputError(f"vllm serve was not ready after {arguments.time_limit:g} s; {end}")


def ask(client: openai.OpenAI, arguments: argparse.Namespace, ignore_eos: bool, **options):
    """The card's request."""
    return client.chat.completions.create(
        model=str(arguments.checkpoint),
        messages=MESSAGES,
        max_tokens=arguments.max_tokens,
        extra_body={"top_k": TOP_K, "ignore_eos": ignore_eos},
        **SAMPLING,
        **options,
    )


@torch.no_grad()
def likeliest_tokens(checkpoint: Path, dtype: torch.dtype, device: str) -> tuple[list[int], list[str]]:
    """Return the question's token ids, and what transformers finds likeliest after them, the likeliest first.

    The ids begin with the template's bos, which a server may not add to a plain text.
    """
    model, tokenizer = inference.load_model(checkpoint, dtype, device), tokenization.load_tokenizer(checkpoint)
    question = tokenizer(MESSAGES[0]["content"])["input_ids"]
    logits = model(torch.tensor([question], device=device)).logits[0, -1]
    return question, [tokenizer.decode([token]) for token in logits.topk(CANDIDATES).indices.tolist()]


def check_likeliest(
    client: openai.OpenAI, question: list[int], arguments: argparse.Namespace, expected: list[str]
) -> str:
    """Return what vLLM finds likeliest after the question; raise InputError if transformers does not expect that."""
    response = client.completions.create(
        model=str(arguments.checkpoint),
        prompt=question,
        max_tokens=1,
        temperature=0,
        extra_body={"skip_special_tokens": False},
    )
    found = response.choices[0].text
    if found.strip() not in [token.strip() for token in expected]:
        raise InputError(
            f"{arguments.checkpoint}: vLLM says {found!r}, transformers one of {expected}; not its weights?"
        )
    return found


def check_answer(client: openai.OpenAI, arguments: argparse.Namespace) -> Answer:
    """What the model says to the card's request; InputError if that is no answer."""
    response = ask(client, arguments, ignore_eos=False)
    answer = response.choices[0] if response.choices else None
    if not (answer and answer.message.content and answer.finish_reason in ("stop", "length")):
        raise InputError(f"expected a text that ends with 'stop' or 'length', found {response.model_dump_json()}")
    return Answer(
        content=answer.message.content,
        finish_reason=answer.finish_reason,
        prompt_tokens=response.usage.prompt_tokens,
        completion_tokens=response.usage.completion_tokens,
    )


def measure(client: openai.OpenAI, requests: int, arguments: argparse.Namespace) -> Load:
    """Send some requests at once."""
    start = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        answers = list(pool.map(lambda _: stream(client, arguments), range(requests)))
    seconds = time.perf_counter() - start
    first_token, tokens = zip(*answers, strict=True)
    return Load(
        requests=requests,
        seconds=seconds,
        time_to_first_token_s=FirstToken(mean=fmean(first_token), most=max(first_token)),
        tokens=sum(tokens),
        tokens_per_s=sum(tokens) / seconds,
    )


def stream(client: openai.OpenAI, arguments: argparse.Namespace) -> tuple[float, int]:
    """Seconds to the first token of one answer, and how many tokens came."""
    start, first, tokens = time.perf_counter(), None, 0
    for chunk in ask(client, arguments, ignore_eos=True, stream=True, stream_options={"include_usage": True}):
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - start
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    if first is None or tokens != arguments.max_tokens:
        raise InputError(f"expected an answer of {arguments.max_tokens} tokens, found {tokens}")
    return first, tokens


if __name__ == "__main__":
    errors.run(main)
