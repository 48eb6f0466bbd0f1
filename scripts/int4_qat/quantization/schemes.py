"""A scheme: which numbers stand for a weight, in the words of compressed-tensors' own config."""

from typing import NamedTuple

GROUP_SIZES = (32, 64, 128, 256)
FLOAT, INTEGER = "float", "integer"


class Scheme(NamedTuple):
    """An entry of `quantizations` in the config, without its method, formats and exceptions."""

    type: str  # int
    num_bits: int  # 4
    symmetric: bool
    strategy: str  # group: the input features that share a scale stand side by side
    group_size: int
    zero_point: str | None  # FLOAT, INTEGER; None where symmetric

    @property
    def words(self) -> dict:
        """The scheme as the config has it."""
        return {key: value for key, value in self._asdict().items() if value is not None}

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else f"{self.zero_point} zero point"
        return f"{self.type}{self.num_bits}, {kind}, groups of {self.group_size}"


def of_words(words: dict) -> Scheme:
    """Return the scheme of a config's words; others beside them do not count."""
    return Scheme(**{key: words.get(key) for key in Scheme._fields})


def int4(group_size: int, zero_point: str | None = FLOAT) -> Scheme:
    """Return the scheme of four bits with a kind of zero point; None is the symmetric one."""
    return Scheme("int", 4, zero_point is None, "group", group_size, zero_point)
