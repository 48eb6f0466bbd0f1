"""What check_parity finds."""

from typing import TypedDict


class Parity(TypedDict):
    """parity.json: how far what is deployed is from what was trained."""

    weights_that_differ: int
    relative_logit_difference: float
    scheme: dict | None  # that the training saw
    target: str | None  # what of the weights was trained in the scheme
    texts: int
    tokens: int
    dtype: str
    device: str
