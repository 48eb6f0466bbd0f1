"""Decode greedily without making a GPU wait for Python between two tokens.

`model.generate` prepares every step in Python. At the shapes of Gemma 3 12B and with one request, this left a GPU idle
for a third of the time of each token (docs/gpu-details.md). Here one step, from the last token to the next, is compiled
and recorded as a CUDA graph, which is replayed for every token.
"""

import copy
from collections.abc import Callable

import torch
from transformers import PretrainedConfig, PreTrainedModel, StaticCache

from int4_qat.engines import one_token_attention
from int4_qat.system import cuda_graphs

WARM_UP_STEPS = 2  # the first one compiles; from the second on, memory keeps its addresses


class GreedyDecoder:
    """A decoder that continues a fixed number of prompts at a time, each with a model's likeliest tokens.

    length is the maximum number of tokens of a prompt and its continuation together. The end of a text does not stop
    the decoder.
    """

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        self.model, self.cache = model, static_cache(model.config, length)
        self.step: Callable[[], None] | None = None

    @property
    def cuda_graph(self) -> bool:
        """Return whether the steps are replayed as a CUDA graph, which is known from the first call on."""
        return self.step not in (None, self.next_token)

    @torch.no_grad()
    def __call__(self, prompts: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Return the ids (prompts, new_tokens) that follow the ids of prompts (prompts, tokens) of equal length."""
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
        """Fill the cache with prompts and set `last` to the token that follows each."""
        self.cache.reset()
        self.last.copy_(likeliest(self.model, prompts, self.cache))

    def start(self, prompts: torch.Tensor) -> None:
        """Prepare the step for this number of prompts, which are read only so that the cache allocates its memory."""
        self.last = prompts[:, -1:].clone()
        self.read(prompts)
        self.cache.reset()  # so that it has room for the warm-up steps
        self.step = self.recorded() if prompts.is_cuda else self.next_token

    def recorded(self) -> Callable[[], None]:
        """Return the replay of a step that is compiled into few kernels, or the plain step if it is not one graph.

        It is not one graph if a model reads a number from the GPU, as positions with `longrope` do.
        """
        step = torch.compile(self.next_token, dynamic=False, fullgraph=True)

        def warm_up() -> None:
            for _ in range(WARM_UP_STEPS):
                step()

        try:
            with one_token_attention.compiled_in():
                graph, _ = cuda_graphs.record(step, warm_up)
        except torch._dynamo.exc.TorchDynamoException as error:
            print(f"decoding more slowly, since no CUDA graph could be recorded: {str(error).splitlines()[0]}")
            return self.next_token
        return graph.replay

    def next_token(self) -> None:
        """Replace the last token of each text with the one that follows it."""
        self.last.copy_(likeliest(self.model, self.last, self.cache))


def likeliest(model: PreTrainedModel, tokens: torch.Tensor, cache: StaticCache) -> torch.Tensor:
    """Return the likeliest token (texts, 1) after token ids (texts, tokens), which are added to the cache."""
    logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1:].argmax(-1)


def static_cache(config: PretrainedConfig, length: int) -> StaticCache:
    """Return a cache for `length` tokens at fixed addresses, as CUDA graphs need it.

    A layer with a sliding window holds all tokens too: transformers would count those of a window in Python, which no
    graph can follow. The model's mask hides the tokens that are behind the window.
    """
    text = copy.deepcopy(config.get_text_config(decoder=True))
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    text.layer_types = ["full_attention" if kind == "sliding_attention" else kind for kind in kinds]
    return StaticCache(text, max_cache_len=length)
