"""Define the schema of serving.json, which check_serving writes."""

from typing import TypedDict


class Answer(TypedDict):
    """The model's answer to the card's request."""

    content: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class FirstToken(TypedDict):
    """The seconds until the first token arrived, over the requests."""

    mean: float
    most: float


class Load(TypedDict):
    """The measurements of several requests at once."""

    requests: int
    seconds: float
    time_to_first_token_s: FirstToken
    tokens: int
    tokens_per_s: float


class Serving(TypedDict):
    """The content of serving.json: what vLLM's server answers, and how fast."""

    answer: Answer
    likeliest_token: str
    likeliest_tokens_in_transformers: list[str]
    load: list[Load]
    startup_s: float
    engine: str
    engine_version: str
    vllm_arguments: list[str]  # the config's, without those that spread the model over several GPUs
    gpus: int
    max_tokens: int
    dtype: str
    kernel: str | None  # vLLM's, for compressed-tensors
    device: str
