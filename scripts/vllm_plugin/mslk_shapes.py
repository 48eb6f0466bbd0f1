"""A plugin of vLLM: the shape of mslk's int4 product, without which torch.compile stops at it.

vLLM loads it in each of its processes once this folder is on Python's path, where measure_latency puts it.

    PYTHONPATH=scripts/vllm_plugin vllm serve results/gemma-3-12b-it/qat-int4/checkpoint
"""

import functools
from importlib.util import find_spec

import torch


@functools.cache
def register() -> None:
    """Say what (tokens, inputs) times a shuffled weight gives: (tokens, outputs), both bf16.

    RuntimeError from a version of mslk that says so itself; 1.1.0 does not. Without mslk there is nothing to say.
    """
    if find_spec("mslk") is None:
        return
    import mslk  # noqa: F401  # brings the operator

    torch.library.register_fake("mslk::bf16i4bf16_shuffled", lambda x, w, *_: x.new_empty(x.shape[0], w.shape[0]))
