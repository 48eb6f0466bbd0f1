"""Many small steps on a GPU, launched as one: a CUDA graph of them is recorded once for each shape, then replayed."""

from collections.abc import Callable

import torch

Recorded = tuple[torch.cuda.CUDAGraph, list[torch.Tensor], tuple[torch.Tensor, ...]]
_recorded: dict[tuple, Recorded] = {}


def replayed(function: Callable[..., tuple[torch.Tensor, ...]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return what a function makes of tensors, which it may use up; it must do the same steps for all of a shape.

    Without a GPU it is just called.
    """
    if not tensors[0].is_cuda:
        return function(*tensors)
    key = (function, *((tensor.shape, tensor.dtype) for tensor in tensors))
    if key not in _recorded:
        _recorded[key] = _record(function, tensors)
    graph, given, made = _recorded[key]
    for own, tensor in zip(given, tensors, strict=True):
        own.copy_(tensor)
    graph.replay()
    return tuple(tensor.clone() for tensor in made)


def _record(function: Callable, tensors: tuple[torch.Tensor, ...]) -> Recorded:
    """Return a graph, the tensors that it reads and those that it makes."""
    given = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what libraries set up at their first call is no part of a graph
        function(*(tensor.clone() for tensor in given))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = function(*given)
    return graph, given, made
