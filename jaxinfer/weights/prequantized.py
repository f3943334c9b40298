"""From weights that another project packed to one parameter: as a `QTensor` of the very same numbers
where there is a form for all of its pieces, else rows of floats.

Pieces fused into one parameter need one kind of value and one order of columns. Their groups may
differ, or be cut by shards: scales are then repeated for the largest group that divides all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import quantize, sharding
from jaxinfer.models.linear import Leaf
from jaxinfer.quantize import grid
from jaxinfer.quantize.form import PACKED
from jaxinfer.weights import placement
from jaxinfer.weights.formats import Packed, Rows

BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Part:
    """A canonical tensor: rows first .. of a packed weight."""

    packed: Packed
    first: int = 0


def place(leaf: Leaf, parts: Mapping[str, Part], dtype: np.dtype, mesh) -> quantize.QTensor | None:
    """The parameter `leaf` describes over `mesh`; None where no form holds its numbers as they are.

    dtype: of the model; where it is bfloat16, four-bit scales are too.
    """
    found = form_of(leaf, parts, dtype, mesh)
    if found is None:
        return None
    form, order = found
    rows = cache(partial(_rows, leaf, parts, form))

    def array(name, part):
        where = sharding.place(part.letters, mesh)
        if name == "order":
            return jax.device_put(jnp.asarray(order), where)
        return placement.array_of(part.shape, where, lambda start, stop: rows(start, stop)[name])

    return placement.build(form, leaf, array)


def form_of(
    leaf: Leaf, parts: Mapping[str, Part], dtype: np.dtype, mesh
) -> tuple[quantize.Form, np.ndarray | None] | None:
    """How a leaf is held, and the order of its columns; None: as floats."""
    names = dict.fromkeys(piece.name for piece in leaf.pieces if piece.name is not None)
    if not all(name in parts for name in names):
        return None
    packed = [parts[name].packed for name in names]
    kinds = {(one.kind, one.method) for one in packed}
    kind, method = next(iter(kinds))
    if len(kinds) > 1 or kind is None:
        return None
    orders = [one.order() for one in packed]
    order, sorted_ones = orders[0], [one for one in orders if one is not None]
    if sorted_ones and len(sorted_ones) < len(orders):
        return None
    if not all(np.array_equal(sorted_ones[0], other) for other in sorted_ones):
        return None
    columns, shards = leaf.shape[1], placement.cuts(leaf, mesh)
    group = None
    zero = any(one.zero for one in packed)
    if kind == "int4" or zero or any(one.group < columns for one in packed):
        group = math.gcd(columns // shards, *(one.group for one in packed if one.group < columns))
    if (order is not None and shards > 1) or columns % shards:
        return None
    if kind == "int4" and (group is None or group % PACKED):
        return None
    scale = None
    if kind == "int4" and dtype != jnp.bfloat16:
        wide = {one.scale for one in packed}
        scale = next(iter(wide)).name if len(wide) == 1 else "float32"
        scale = None if scale == "bfloat16" else scale
    return quantize.Form(method, kind, group, zero, order=order is not None, scale=scale), order


def dense(part: Part, start: int, stop: int) -> np.ndarray:
    """Rows start .. stop as float32 [n, in]."""
    packed = part.packed
    found = packed.read(part.first + start, part.first + stop)
    if found.scale is None:
        return found.values
    order, columns = packed.order(), found.values.shape[1]
    out = np.empty(found.values.shape, np.float32)
    step = max(1, BLOCK_BYTES // (4 * columns))
    for at in range(0, len(out), step):
        rows = slice(at, at + step)
        values = found.values[rows] if order is None else found.values[rows][:, order]
        zero = np.float32(grid.MIDDLE if packed.kind == "int4" else 0)
        if found.zero is not None:
            zero = _wide(found.zero[rows], columns, packed.group)
        scale = _wide(found.scale[rows], columns, packed.group)
        values = (values.astype(np.float32) - zero) * scale
        out[rows] = values if order is None else values[:, np.argsort(order)]
    return out


def _wide(each: np.ndarray, columns: int, group: int) -> np.ndarray:
    """[n, groups] -> float32 [n, in]."""
    return np.repeat(each.astype(np.float32), group, axis=1)[:, :columns]


def _rows(
    leaf: Leaf, parts: Mapping[str, Part], form: quantize.Form, start: int, stop: int
) -> dict[str, np.ndarray]:
    """Rows start .. stop of the arrays of `form`."""
    described = form.parts((leaf.shape[0], leaf.shape[1]), leaf.letters)
    arrays = {name: getattr(described, name) for name in ("values", "scale", "zero")}
    out = {
        name: placement.aligned((stop - start, *part.shape[1:]), part.dtype)
        for name, part in arrays.items()
        if part is not None
    }
    at = 0
    for piece in leaf.pieces:
        size = piece.stop - piece.start
        low, high = max(start, at), min(stop, at + size)
        if low < high:
            target = {name: array[low - start : high - start] for name, array in out.items()}
            if piece.name is None:
                _padding(target, form)
            else:
                part = parts[piece.name]
                first = part.first + piece.start - at
                _adopt(part.packed, part.packed.read(first + low, first + high), form, target)
        at += size
    return out


def _padding(target: dict[str, np.ndarray], form: quantize.Form) -> None:
    """Rows that stand for zeros."""
    middle = grid.MIDDLE if form.kind == "int4" else 0
    columns = target["values"].shape[1] * (PACKED if form.kind == "int4" else 1)
    values = np.full((1, columns), middle, np.uint8)
    target["values"][...] = grid.pack(values) if form.kind == "int4" else 0
    target["scale"][...] = 1
    if "zero" in target:
        target["zero"][...] = middle


def _adopt(packed: Packed, found: Rows, form: quantize.Form, target: dict[str, np.ndarray]) -> None:
    """Write rows as `form` has them."""
    assert found.scale is not None
    columns = found.values.shape[1]
    order = packed.order() if form.order else None
    step = max(1, BLOCK_BYTES // (16 * columns))
    for at in range(0, len(found.values), step):
        values = found.values[at : at + step]
        values = values if order is None else values[:, order]
        target["values"][at : at + step] = grid.pack(values) if form.kind == "int4" else values
    if form.group is None:
        target["scale"][...] = found.scale[:, 0]
        return
    index = np.arange(0, columns, form.group) // packed.group
    target["scale"][...] = found.scale[:, index].astype(target["scale"].dtype)
    if "zero" in target:
        middle = grid.MIDDLE if form.kind == "int4" else 0
        target["zero"][...] = middle if found.zero is None else found.zero[:, index]
