"""Launch many small GPU steps as one: record them once in a CUDA graph, then replay the graph."""

from collections.abc import Callable

import torch

Made = tuple[torch.Tensor, ...] | None
Recorded = tuple[torch.cuda.CUDAGraph, list[torch.Tensor], Made]
_recorded: dict[tuple, Recorded] = {}


def replayed(function: Callable[..., tuple[torch.Tensor, ...]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return function(*tensors), replayed from a CUDA graph if the tensors are on a GPU.

    The function may overwrite its arguments. It must do the same steps for all tensors of the same shapes and dtypes.
    Without a GPU it is called directly.
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
    """Record steps in a CUDA graph, whose tensors keep their addresses; return the graph and what the steps return.

    warm_up runs first, so that what compilers and libraries set up at a first call is not part of the graph.
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
