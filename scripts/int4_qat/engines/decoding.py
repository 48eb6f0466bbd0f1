"""Greedy decoding in which a GPU does not wait for Python between two tokens.

`model.generate` prepares every step in Python. At the shapes of Gemma 3 12B, one request, a GPU was idle for a third of
the time of each token because of it (docs/gpu.md). Here one step, from the last token to the next, is compiled and
recorded as a CUDA graph, which is replayed for every token.
"""

import copy
from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedModel, StaticCache

from int4_qat.system import cuda_graphs

WARM_UP_STEPS = 2  # the first compiles; memory is where it stays from the second on


class GreedyDecoder:
    """Continue prompts of a model, a fixed number of them at a time, each by its likeliest tokens.

    length is the most tokens that prompt and continuation have together. An end of a text does not stop it.
    """

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        self.model, self.cache = model, static_cache(model.config, length)
        self.step: Callable[[], None] | None = None

    @torch.no_grad()
    def __call__(self, prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Return the (prompts, new_tokens) that follow the ids of prompts (prompts, tokens); all have one length."""
        if self.step is None:
            self.start(prompts)
        self.read(prompts)
        found = prompts.new_empty(len(prompts), new_tokens)
        found[:, :1] = self.last
        for number in range(1, new_tokens):
            self.step()
            found[:, number : number + 1] = self.last
        return found

    def read(self, prompts: torch.Tensor) -> None:
        """Fill the cache with prompts; `last` is the token that follows each."""
        self.cache.reset()
        self.last.copy_(likeliest(self.model, prompts, self.cache))

    def start(self, prompts: torch.Tensor) -> None:
        """Make the step for as many prompts as these, which are only read so that the cache has its memory."""
        self.last = prompts[:, -1:].clone()
        self.read(prompts)
        self.cache.reset()  # so that steps to warm up find room in it
        self.step = self.recorded() if prompts.is_cuda else self.next_token

    def recorded(self) -> Callable[[], None]:
        """Return the replay of a step that is compiled into few kernels, or the step where it is not one graph.

        It is none where a model asks for a number that the GPU has, as positions by `longrope` do.
        """
        step = torch.compile(self.next_token, dynamic=False, fullgraph=True)

        def warm_up() -> None:
            for _ in range(WARM_UP_STEPS):
                step()

        try:
            graph, _ = cuda_graphs.record(step, warm_up)
        except torch._dynamo.exc.TorchDynamoException as error:
            print(f"decoding: each step waits for Python, since it cannot be recorded: {str(error).splitlines()[0]}")
            return self.next_token
        return graph.replay

    def next_token(self) -> None:
        """Replace the last token of each text by the one that follows it."""
        self.last.copy_(likeliest(self.model, self.last, self.cache))


def likeliest(model: PreTrainedModel, tokens: torch.Tensor, cache: StaticCache) -> torch.Tensor:
    """Return the likeliest token (texts, 1) after some ids (texts, tokens), which the cache keeps from then on."""
    logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1:].argmax(-1)


def static_cache(config: PretrainedConfig, length: int) -> StaticCache:
    """Return a cache for `length` tokens at fixed addresses, as CUDA graphs need it.

    A layer with a sliding window holds all tokens too. transformers would count them in Python, which no graph can
    follow; the model's mask hides what is behind the window.
    """
    text = copy.deepcopy(config.get_text_config(decoder=True))
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    text.layer_types = ["full_attention" if kind == "sliding_attention" else kind for kind in kinds]
    return StaticCache(text, max_cache_len=length)
