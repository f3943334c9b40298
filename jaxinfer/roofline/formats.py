"""How weights and cached keys and values are stored, in bits, and what they are multiplied as."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Format:
    """bits of one value. group: how many values along a row share a scale of scale_bytes (None: the
    whole row; for a cache, a row is one head's vector). Without scales scale_bytes is 0.

    compute: the type of the operands of the product, by which a chip's FLOP/s are found. plain: bytes
    of what is never rounded (norms, biases, activations).
    """

    name: str
    bits: int
    compute: str
    group: int | None = None
    scale_bytes: int = 0
    plain: int = 2

    def stored(self, rows: float, columns: int) -> float:
        """The bytes of a matrix [rows, columns], scales included."""
        scales = 1 if self.group is None else -(-columns // self.group)
        return rows * (columns * self.bits / 8 + scales * self.scale_bytes)


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        format.name: format
        for format in (
            Format("float32", 32, "float32", plain=4),
            Format("bfloat16", 16, "bfloat16"),
            Format("float16", 16, "float16"),
            Format("int8", 8, "bfloat16", scale_bytes=4),
            Format("w8a8", 8, "int8", scale_bytes=4),
            Format("llm_int8", 8, "int8", scale_bytes=4),
            Format("fp8", 8, "bfloat16", scale_bytes=4),
            Format("int4", 4, "bfloat16", group=128, scale_bytes=2),
        )
    }
)


def find(format: str | Format) -> Format:
    """A format by name; ValueError lists the names."""
    if isinstance(format, Format):
        return format
    if format not in FORMATS:
        raise ValueError(f"a format needs to be one of {', '.join(FORMATS)}, got {format!r}")
    return FORMATS[format]
