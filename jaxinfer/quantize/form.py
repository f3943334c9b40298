"""Which arrays hold a quantized weight, before there are any.

The same description places a weight while it loads, names what a saved one must have, and gives
shapes to compile for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinfer.quantize.tensor import QTensor

VALUES = {"int8": jnp.int8, "int4": jnp.int32, "fp8": jnp.float8_e4m3fn}
SCALES = {"int8": "float32", "int4": "bfloat16", "fp8": "float32"}
ARRAYS = ("values", "scale", "zero", "smooth", "columns", "outliers", "order")  # of a `QTensor`
KIND_OF = {np.dtype(dtype).name: kind for kind, dtype in VALUES.items()}
PACKED = 8  # neighbours along `in` in one int32


@dataclass(frozen=True)
class Part:
    """One array: its shape, the letters of its axes, its type."""

    shape: tuple[int, ...]
    letters: str
    dtype: np.dtype


@dataclass(frozen=True)
class Form:
    """How one weight is held. method: as in `QTensor`; kind: "int8", "int4" or "fp8"; group: of the
    scales (None: one a row); outliers: how many columns are kept beside the values; order: whether
    columns are sorted by group; scale: the type of scales and zero points (None: bfloat16 for four
    bits, else float32).
    """

    method: str
    kind: str
    group: int | None = None
    zero: bool = False
    smooth: bool = False
    outliers: int = 0
    order: bool = False
    scale: str | None = None

    def parts(self, shape: tuple[int, ...], letters: str = "..") -> QTensor:
        """A `QTensor` of `Part`s for a weight [out, in]."""
        out, columns = shape
        row, column = letters
        small = np.dtype(jnp.bfloat16)
        whole = np.dtype(np.float32)
        own = np.dtype(jnp.dtype(self.scale or SCALES[self.kind]))
        width = columns // PACKED if self.kind == "int4" else columns
        scale: Any = Part((out,), row, own)
        if self.group is not None:
            scale = Part((out, columns // self.group), letters, own)

        def when(present, *described) -> Any:
            return Part(*described) if present else None

        values: Any = Part((out, width), letters, np.dtype(VALUES[self.kind]))
        return QTensor(
            values=values,
            scale=scale,
            method=self.method,
            zero=when(self.zero, scale.shape, scale.letters, scale.dtype),
            smooth=when(self.smooth, (columns,), column, whole),
            columns=when(self.outliers, (self.outliers,), ".", np.dtype(np.int32)),
            outliers=when(self.outliers, (out, self.outliers), row + ".", small),
            order=when(self.order, (columns,), ".", np.dtype(np.int32)),
        )

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """What a weight [out, in] takes."""
        held = self.parts(shape)
        found: list[Any] = [getattr(held, name) for name in ARRAYS]
        return sum(int(np.prod(p.shape)) * p.dtype.itemsize for p in found if p is not None)


def form_of(method: str, found: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> Form:
    """The form of arrays found by name, with their shapes and types.

    method: of the whole model, which says how int8 values are multiplied. ValueError where they
    make no weight.
    """
    for name, rank in (("values", 2), ("scale", None)):
        if name not in found or (rank is not None and len(found[name][0]) != rank):
            raise ValueError(f"a quantized weight needs an array {name}, got {', '.join(found)}")
    (out, width), dtype = found["values"]
    kind = KIND_OF.get(np.dtype(dtype).name)
    if kind is None:
        raise ValueError(f"values need a type among {', '.join(KIND_OF)}, got {dtype}")
    scale = found["scale"][0]
    columns = width * PACKED if kind == "int4" else width
    group = None
    if len(scale) == 2:
        if not scale[1] or columns % scale[1]:
            raise ValueError(f"{columns} columns need equal groups, got scales {list(scale)}")
        group = columns // scale[1]
    outliers = found["columns"][0][0] if "columns" in found else 0
    if kind != "int8":
        own = kind
    elif outliers:
        own = "llm_int8"
    else:
        own = "w8a8" if method in ("w8a8", "smoothquant") and group is None else "int8"
    narrow = np.dtype(found["scale"][1]).name
    if narrow != SCALES[kind] and (kind != "int4" or narrow not in ("float16", "float32")):
        raise ValueError(f"scales of {kind} need the type {SCALES[kind]}, got {narrow}")
    scale_type = None if narrow == SCALES[kind] else narrow
    present = "zero" in found, "smooth" in found
    return Form(own, kind, group, *present, outliers, "order" in found, scale_type)


def divides(form: Form, columns: int, shards: int) -> bool:
    """Whether every shard of a weight cut along `in` holds whole groups and whole words, with the
    activations that meet them.
    """
    if form.order and shards > 1:
        return False
    step = max(form.group or 1, PACKED if form.kind == "int4" else 1)
    return columns % shards == 0 and columns // shards % step == 0
