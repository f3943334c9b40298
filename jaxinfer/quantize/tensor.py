"""A weight in few bits: the arrays that hold it, and what they stand for.

A `QTensor` is a plain pytree: it shards, donates, saves and restores as its arrays do. What its
values mean follows from their types, as `pallas_kernels.skinny_matmul.weight` has it:

| values | scale | zero | the weight [out, in] |
|---|---|---|---|
| int8 or float8_e4m3fn [out, in] | [out] float32 | none | values * scale |
| float8_e4m3fn [out, in] | [out, in / group] float32 | none | values * scale, group by group |
| int8 [out, in] | [out, in / group] float32 | none, or like scale | (values - zero) * scale |
| int32 [out, in / 8], packed | [out, in / group] | none, or like scale | (nibble - zero or 8) * scale |

Four-bit scales are bfloat16, in which the kernels take them; those of other projects' checkpoints may
keep their own type.
"""

import jax
import jax.numpy as jnp
from flax import struct

from pallas_kernels.skinny_matmul.weight import kind_of, shape_of, unpack

INTEGER = ("w8a8", "llm_int8")  # methods that round activations too, each row to int8


class QTensor(struct.PyTreeNode):
    """values, scale, zero: as in the table above. method: how it is multiplied ("int8", "int4",
    "fp8": by activations as they are; those of INTEGER: by activations rounded to int8).

    smooth [in] float32: what activations are multiplied by before they meet the weight. columns [C]
    int32: the columns that `outliers` [out, C] bfloat16 hold; they are zero in `values`. order [in]
    int32: column i of the arrays is column order[i] of the weight (GPTQ's act-order, whose groups are
    no neighbours).
    """

    values: jax.Array
    scale: jax.Array
    method: str = struct.field(pytree_node=False, default="int8")
    zero: jax.Array | None = None
    smooth: jax.Array | None = None
    columns: jax.Array | None = None
    outliers: jax.Array | None = None
    order: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return shape_of(self.values)

    @property
    def kind(self) -> str:
        """ "int8", "fp8" or "int4"."""
        return kind_of(self.values)

    @property
    def group(self) -> int | None:
        """How many neighbours along `in` share a scale; None: the whole row."""
        return None if self.scale.ndim == 1 else self.shape[1] // self.scale.shape[1]


Weight = jax.Array | QTensor


def grid_values(w: QTensor) -> jax.Array:
    """float32 [out, in]: values with their scales, in their own order, without what `smooth` and
    `outliers` add.
    """
    numbers = (unpack(w.values) if w.kind == "int4" else w.values).astype(jnp.float32)
    scale = w.scale.astype(jnp.float32)
    if scale.ndim == 1:
        return numbers * scale[:, None]
    rows, groups = scale.shape
    numbers = numbers.reshape(rows, groups, numbers.shape[1] // groups)
    if w.zero is not None:
        numbers = numbers - w.zero.astype(jnp.float32)[:, :, None]
    elif w.kind == "int4":
        numbers = numbers - 8.0
    return (numbers * scale[:, :, None]).reshape(rows, -1)


def dequantize(w: Weight) -> jax.Array:
    """The float32 weight [out, in] that stands for `w` in an exact product."""
    if not isinstance(w, QTensor):
        return w.astype(jnp.float32)
    whole = grid_values(w)
    if w.columns is not None and w.outliers is not None:
        whole = whole.at[:, w.columns].add(w.outliers.astype(jnp.float32))
    if w.order is not None:
        whole = whole[:, jnp.argsort(w.order)]
    return whole if w.smooth is None else whole * w.smooth[None]


def rows(w: Weight, ids: jax.Array, dtype) -> jax.Array:
    """The rows `ids` [T] of an embedding w [V, D] -> [T, D]."""
    if not isinstance(w, QTensor):
        return w[ids].astype(dtype)
    few = w.replace(
        values=w.values[ids],
        scale=w.scale[ids],
        zero=None if w.zero is None else w.zero[ids],
        outliers=None if w.outliers is None else w.outliers[ids],
    )
    return dequantize(few).astype(dtype)


def parts(w: Weight) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """The values, scales and zero points (None: there are none) that make up a weight."""
    return (w.values, w.scale, w.zero) if isinstance(w, QTensor) else (w, None, None)
