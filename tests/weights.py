"""Draw random weights that are the same in every run."""

import torch


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normally distributed numbers in fp32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
