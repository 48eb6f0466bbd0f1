"""Parse the names of variants, `<base or arm>-<bf16 or a quantization>`: a variant is weights x precision.

The card compares five of them.
"""

from collections.abc import Iterable

BASE, BF16 = "base", "bf16"
BASELINE = f"{BASE}-{BF16}"


def split(variant: str) -> tuple[str, str]:
    """Return ('qat', 'int4') for 'qat-int4'; raise ValueError if it is not `<weights>-<precision>`."""
    weights, _, precision = variant.rpartition("-")
    if not weights or not precision:
        raise ValueError(f"variant: expected <base or arm>-<{BF16} or a quantization>, found '{variant}'")
    return weights, precision


def is_quantized(variant: str) -> bool:
    """Return whether a variant's weights are in a quantization of the config."""
    return split(variant)[1] != BF16


def weights_of(names: Iterable[str]) -> list[str]:
    """Return the weights of some variants, each once, the base first."""
    return sorted({split(name)[0] for name in names}, key=lambda weights: (weights != BASE, weights))
