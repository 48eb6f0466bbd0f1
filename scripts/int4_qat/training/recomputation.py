"""Recompute the inner values of a compiled layer in the backward pass, instead of keeping them.

The compiled code of the backward pass computes them. transformers' checkpointing is around the compiled code, so Python
runs each layer once more, for which the GPU waits if texts are short (docs/gpu-details.md).
"""

import functools
from collections.abc import Callable

import torch
import torch._functorch.config
from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported, UserError
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils.checkpoint import checkpoint

KEEP_INPUTS_ALONE = {"activation_memory_budget": 0.0}  # of what the compiler would keep in addition
NOT_FOLLOWED = (FailOnRecompileLimitHit, GuardOnDataDependentSymNode, Unsupported, UserError)


# Two functions, since PyTorch stops compiling all that is made of the code of one that reached its limit.
def call_whole(function: Callable, *args, **kwargs):
    """Call a function that is compiled as a whole."""
    return function(*args, **kwargs)


def call_parts(function: Callable, *args, **kwargs):
    """Call a function that may be compiled in parts."""
    return function(*args, **kwargs)


class Recomputed:
    """A layer's forward function, compiled, that keeps only its arguments for the backward pass.

    Two kinds of functions get PyTorch's checkpointing around their compiled code instead. A function that draws random
    numbers would draw others in the backward pass. A function that cannot be compiled as a whole would keep the values
    that its parts exchange.
    """

    def __init__(self, layer: torch.nn.Module, backend: str):
        self.layer, self.function, self.obstacle = layer, layer.forward, None
        self.draws: dict[bool, bool] = {}  # whether it draws random numbers, by whether it is in training mode
        self.whole = torch.compile(call_whole, fullgraph=True, backend=recomputing(backend))
        self.parts = torch.compile(call_parts, backend=backend)

    def __call__(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            return self.parts(self.function, *args, **kwargs)
        mode = self.layer.training
        if mode not in self.draws:
            self.draws[mode] = draws_random_numbers(self.function, *args, **kwargs)
        if self.obstacle is None and not self.draws[mode]:
            try:
                return self.whole(self.function, *args, **kwargs)
            except NOT_FOLLOWED as error:  # before anything was computed
                self.obstacle = str(error).partition("\n")[0]
        report(self.obstacle or "it draws random numbers")
        return checkpoint(self.parts, self.function, *args, use_reentrant=False, **kwargs)


@functools.cache
def recomputing(backend: str) -> Callable:
    """Return a backend of torch.compile whose compiled functions keep only their arguments for the backward pass."""
    compiler = torch._dynamo.lookup_backend(backend)

    def compile_graph(graph: torch.fx.GraphModule, inputs: list, **options):
        with torch._functorch.config.patch(KEEP_INPUTS_ALONE):
            return compiler(graph, inputs, **options)

    return compile_graph


def draws_random_numbers(function: Callable, *args, **kwargs) -> bool:
    """Return whether a function draws random numbers, by calling it and putting the generators' states back."""
    on_gpu = torch.cuda.is_initialized()
    with torch.no_grad(), torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
        before = generator_states(on_gpu)
        function(*args, **kwargs)
        after = generator_states(on_gpu)
        return not all(map(torch.equal, before, after))


def generator_states(on_gpu: bool) -> list[torch.Tensor]:
    """Return the states of the generators of the CPU and, if asked, of the current GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_gpu else [])]


@functools.cache
def report(obstacle: str) -> None:
    """Say once why a layer is checkpointed around its compiled code."""
    print(f"a layer is checkpointed around its compiled code, which takes longer: {obstacle}")
