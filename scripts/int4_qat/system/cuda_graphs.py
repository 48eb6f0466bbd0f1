"""Many small steps on a GPU, launched as one: a CUDA graph of them is recorded once, then replayed."""

from collections.abc import Callable

import torch

Made = tuple[torch.Tensor, ...] | None
Recorded = tuple[torch.cuda.CUDAGraph, list[torch.Tensor], Made]
_recorded: dict[tuple, Recorded] = {}


def replayed(function: Callable[..., tuple[torch.Tensor, ...]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what a function makes of tensors, which it may use up; it must do the same steps for all of a shape.

    Without a GPU it is just called.
    """
    if not tensors[0].is_cuda:
        return function(*tensors)
    key = (function, *((tensor.shape, tensor.dtype) for tensor in tensors))
    if key not in _recorded:
        given = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
        copies = [tensor.clone() for tensor in given]
        graph, made = record(lambda: function(*given), lambda: function(*copies))
        _recorded[key] = graph, given, made
    graph, given, made = _recorded[key]
    for own, tensor in zip(given, tensors, strict=True):
        own.copy_(tensor)
    graph.replay()
    return tuple(tensor.clone() for tensor in made)


def record(steps: Callable[[], Made], warm_up: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, Made]:
    """Return a graph of some steps, whose tensors stay where they are, and what the steps return.

    warm_up runs before, so that what compilers and libraries set up at a first call is no part of the graph.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warm_up()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = steps()
    return graph, made
