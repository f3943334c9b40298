"""A method with its settings, by name or in full, and the form that it gives each weight."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxinfer.quantize.form import PACKED, Form
from jaxinfer.quantize.fp8 import SHARED
from jaxinfer.quantize.llm_int8 import count

Method = Literal["int8", "int4", "fp8", "w8a8", "llm_int8"]
Calibrated = Literal["smoothquant", "awq", "gptq"]
METHODS: tuple[str, ...] = get_args(Method)  # need weights alone
CALIBRATED: tuple[str, ...] = get_args(Calibrated)  # need text too
GROUP = 128
FOUR = ("int4", "awq", "gptq")


@dataclass(frozen=True)
class Recipe:
    """method: one of METHODS or CALIBRATED. bits: 4 or 8, None: the method's own (4 for those of
    FOUR). group: of four-bit scales and fp8 blocks; None: GROUP, or where that does not divide a
    weight's columns the largest power of two that does. symmetric: no zero points. shared: what
    shares an fp8 scale.
    """

    method: str
    bits: int | None = None
    group: int | None = None
    symmetric: bool = True
    shared: str = "channel"

    def __post_init__(self):
        names = (*METHODS, *CALIBRATED)
        if self.method not in names:
            raise ValueError(f"quantize needs one of {', '.join(names)}, got {self.method!r}")
        four = self.method in FOUR
        allowed = (4, 8) if self.method in CALIBRATED and four else (4,) if four else (8,)
        if self.bits is not None and self.bits not in allowed:
            words = " or ".join(map(str, allowed))
            raise ValueError(f"{self.method} needs {words} bits, got {self.bits}")
        grouped = self.four_bits or (self.method == "fp8" and self.shared == "block")
        if self.group is not None and (not grouped or self.group < PACKED or self.group % PACKED):
            raise ValueError(
                f"a group needs four-bit weights or fp8 blocks, and to be a multiple of {PACKED}, got "
                f"group={self.group} for {self.method} with {8 if not self.four_bits else 4} bits"
            )
        if not self.symmetric and not self.four_bits:
            raise ValueError(f"zero points need four-bit weights, got {self.method}")
        if self.shared not in SHARED or (self.shared != "channel" and self.method != "fp8"):
            raise ValueError(
                f"scales are shared by one of {', '.join(SHARED)}, and only fp8 has a choice, got "
                f"{self.shared!r} for {self.method}"
            )

    @property
    def four_bits(self) -> bool:
        """Whether weights take four bits (the output head and a tied embedding keep eight)."""
        return self.method in FOUR and self.bits != 8

    @property
    def calibrated(self) -> bool:
        """Whether text is needed."""
        return self.method in CALIBRATED

    def form(self, columns: int, *, shards: int = 1, head: bool = False) -> Form:
        """How a weight of `columns` is held, each of `shards` cutting them into equal parts.

        head: whether it gives the logits. ValueError: groups that do not divide a shard's columns.
        """
        if self.four_bits and not head:
            return Form("int4", "int4", self._group(columns, shards), zero=not self.symmetric)
        if self.method == "fp8":
            blocks = self.shared == "block"
            return Form("fp8", "fp8", self._group(columns, shards) if blocks else None)
        if self.method in ("w8a8", "smoothquant"):
            return Form("w8a8", "int8")
        if self.method == "llm_int8" and not head:
            return Form("llm_int8", "int8", outliers=count(columns))
        return Form("int8", "int8")

    def _group(self, columns: int, shards: int) -> int:
        part = columns // shards
        wanted = [self.group] if self.group else [g for g in (128, 64, 32, 16, 8) if not part % g]
        if columns % shards or not wanted or part % wanted[0]:
            held = f"{columns} columns" + (f" over {shards} shards" if shards > 1 else "")
            raise ValueError(
                f"{self.method} needs whole groups of {self.group or PACKED} columns, got {held}; "
                "choose a group that divides them, or another method"
            )
        return wanted[0]

    def __str__(self):
        words = [self.method]
        words += [f"{self.bits} bits"] if self.bits else []
        words += [f"group {self.group}"] if self.group else []
        words += [] if self.symmetric else ["zero points"]
        words += [f"a scale a {self.shared}"] if self.shared != "channel" else []
        return ", ".join(words)


def find(quantize: "str | Recipe | None") -> Recipe | None:
    """A recipe by the name of a method that needs no text, or itself; ValueError lists the names."""
    if quantize is None or isinstance(quantize, Recipe):
        return quantize
    if quantize not in METHODS:
        more = " (jaxinfer quantize makes a checkpoint of it)" if quantize in CALIBRATED else ""
        raise ValueError(
            f"quantize needs one of {', '.join(METHODS)} or None, got {quantize!r}{more}"
        )
    return Recipe(quantize)


def check_method(method: str | None) -> None:
    """ValueError unless `method` is None or one of METHODS."""
    find(method)
