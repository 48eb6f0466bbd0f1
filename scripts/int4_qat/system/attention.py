"""Choose the kernels of attention on a GPU."""

import torch


def fit_kernels(shapes_vary: bool) -> None:
    """Leave cuDNN's attention out if batches vary in shape, and allow it if they have the same few shapes.

    On Hopper PyTorch prefers cuDNN's kernels. They need a plan for each shape that a process has not seen before, which
    takes about half a second for a forward and again for a backward pass; PyTorch's own kernels need none. The choice
    holds for the whole process, from the next compilation on.
    """
    torch.backends.cuda.enable_cudnn_sdp(not shapes_vary)
