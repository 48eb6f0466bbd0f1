"""Define the schema of parity.json, which check_parity writes."""

from typing import TypedDict


class Parity(TypedDict):
    """The content of parity.json: how far what is deployed is from what was trained."""

    weights_that_differ: int
    relative_logit_difference: float
    scheme: dict | None  # that training saw; None without QAT
    target: str | None  # the recipe's qat_target; None without QAT
    texts: int
    tokens: int
    dtype: str
    device: str
