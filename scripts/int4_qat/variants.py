"""A variant is weights x precision, named `<base or arm>-<bf16 or int4>`; the card compares five of them."""

BASE = "base"
PRECISIONS = ("bf16", "int4")
BASELINE = f"{BASE}-bf16"
QUANTIZED_BASELINE = f"{BASE}-int4"


def split(variant: str) -> tuple[str, str]:
    """('qat', 'int4') for 'qat-int4'; ValueError if it is not `<weights>-<precision>`."""
    weights, _, precision = variant.rpartition("-")
    if not weights or precision not in PRECISIONS:
        raise ValueError(f"'{variant}' is not <base or arm>-<{' or '.join(PRECISIONS)}>")
    return weights, precision


def weights_of(names: list[str], precision: str | None = None) -> list[str]:
    """The weights among some variants, the base first; only those in one precision if it is given."""
    pairs = [split(name) for name in names]
    found = {weights for weights, stored in pairs if precision in (None, stored)}
    return sorted(found, key=lambda weights: (weights != BASE, weights))
