"""Define a scheme: which numbers represent a weight, in the words of compressed-tensors' own config."""

from typing import NamedTuple

from int4_qat.system.errors import InputError

GROUP_SIZES = (32, 64, 128, 256)
FLOAT, INTEGER = "float", "integer"
VALUES = {
    "type": ("int",),
    "num_bits": (4,),
    "symmetric": (True, False),
    "strategy": ("group",),
    "group_size": GROUP_SIZES,
}


class Scheme(NamedTuple):
    """An entry of `quantizations` in the config, without its method, formats and exceptions."""

    type: str  # int
    num_bits: int  # 4
    symmetric: bool
    strategy: str  # group: consecutive input features share a scale
    group_size: int
    zero_point: str | None  # FLOAT or INTEGER; None if symmetric

    @property
    def words(self) -> dict:
        """Return the scheme in the words of the config."""
        return {key: value for key, value in self._asdict().items() if value is not None}

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else f"{self.zero_point} zero point"
        return f"{self.type}{self.num_bits}, {kind}, groups of {self.group_size}"


def of_words(words: dict) -> Scheme:
    """Return the scheme that a config's words describe; other keys are ignored."""
    return Scheme(**{key: words.get(key) for key in Scheme._fields})


def of_argument(words: dict) -> Scheme:
    """Return the scheme of a command line; raise InputError if it is none, or contradicts itself."""
    if found := misfit(words):
        raise InputError(f"--scheme: {found}")
    return of_words(words)


def misfit(words: dict) -> str | None:
    """Return what is wrong with the words of a scheme, as "key: expected X, found Y", or None."""
    for key, values in VALUES.items():
        if words.get(key) not in values:
            return f"{key}: expected {' or '.join(map(str, values))}, found {words.get(key)}"
    zero_point = words.get("zero_point")
    if words["symmetric"] and zero_point is not None:
        return f"zero_point: expected none, since symmetric is true, found {zero_point}"
    if not words["symmetric"] and zero_point not in (FLOAT, INTEGER):
        return f"zero_point: expected {FLOAT} or {INTEGER}, since symmetric is false, found {zero_point or 'none'}"
    return None


def int4(group_size: int, zero_point: str | None = FLOAT) -> Scheme:
    """Return the four-bit scheme with a kind of zero point, or the symmetric one for None."""
    return Scheme("int", 4, zero_point is None, "group", group_size, zero_point)
