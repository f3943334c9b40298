"""Quantized weights, and the one einsum that knows them.

A weight is stored `[out, in]`, either as a plain array or as a `QTensor`; every matrix product of a
model goes through `einsum`, so nothing else needs to know which. Methods: "int8" (round to nearest,
one scale per output channel) and "w8a8" (the same weights; activations too are rounded to int8, one
scale per row, so that the product runs on integers).
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pallas_kernels.backend import hopper, platform

Method = Literal["int8", "w8a8"]
METHODS: tuple[str, ...] = get_args(Method)
# XLA's CPU backend, by the type of a weight: how many rows of activations it meets faster as a pair
# of halves
HALVED = {"float32": range(2, 65), "bfloat16": range(16, 65), "int8": range(2, 9)}


@struct.dataclass
class QTensor:
    """values [out, in] int8, scale [out] float32: the weight is values * scale[:, None]."""

    values: jax.Array
    scale: jax.Array
    method: str = struct.field(pytree_node=False, default="int8")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Weight = jax.Array | QTensor


def check_method(method: str | None) -> None:
    """ValueError unless `method` is None or one of METHODS."""
    if method is not None and method not in METHODS:
        raise ValueError(f"quantize needs one of {', '.join(METHODS)} or None, got {method!r}")


def round_rows(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w [out, in] float -> (values int8, scale [out] float32), symmetric, round to nearest.

    A row of zeros gets scale 1. Infinities and NaN are refused: no scale can hold them.
    """
    w = np.asarray(w, np.float32)
    top = np.abs(w).max(axis=1, initial=0.0)
    if not np.isfinite(top).all():
        raise ValueError(
            "int8 quantization needs finite weights, got infinities or NaN; repair the checkpoint"
        )
    scale = np.where(top > 0, top / 127.0, 1.0).astype(np.float32)
    return np.rint(w / scale[:, None]).astype(np.int8), scale


def einsum(x: jax.Array, w: Weight) -> jax.Array:
    """x [T, in] times w [out, in], contracted over `in` -> [T, out] in x's dtype; sums in float32
    (int32 for w8a8).
    """
    if platform() == "cpu" and x.shape[0] == 1 and _narrow(w):
        # XLA's CPU backend first widens the whole weight when one row meets a narrow type; two rows
        # stay narrow
        pair = jax.lax.optimization_barrier(jnp.broadcast_to(x, (2, *x.shape[1:])))
        return _product(pair, w)[:1]
    return _product(x, w)


def rows(w: Weight, ids: jax.Array, dtype) -> jax.Array:
    """The rows `ids` [T] of an embedding w [V, D] -> [T, D]."""
    if isinstance(w, QTensor):
        return (w.values[ids].astype(jnp.float32) * w.scale[ids][:, None]).astype(dtype)
    return w[ids].astype(dtype)


def parts(w: Weight) -> tuple[jax.Array, jax.Array | None]:
    """The values and the scales (None: a plain weight) that make up a weight."""
    return (w.values, w.scale) if isinstance(w, QTensor) else (w, None)


def skinny(x: jax.Array, w: Weight) -> bool:
    """Whether x [T, in] times w is a product of few rows that kernels of its own run."""
    few = hopper() and x.shape[0] <= 64 and x.dtype == jnp.bfloat16
    return few and not (isinstance(w, QTensor) and w.method == "w8a8")


def _narrow(w: Weight) -> bool:
    return isinstance(w, QTensor) or w.dtype != jnp.float32


def _product(x, w):
    if not isinstance(w, QTensor):
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        return _contract(x, w, precision, jnp.float32).astype(x.dtype)
    if w.method == "w8a8":
        wide = x.astype(jnp.float32)
        top = jnp.abs(wide).max(axis=1, keepdims=True)
        step = jnp.where(top > 0, top / 127.0, jnp.ones_like(top))
        narrow = jnp.round(wide / step).astype(jnp.int8)
        out = _contract(narrow, w.values, None, jnp.int32).astype(jnp.float32) * step
    else:
        out = _contract(x, w.values.astype(x.dtype), None, jnp.float32)
    return (out * w.scale[None, :]).astype(x.dtype)


def _contract(x, w, precision, out_type):
    if _halved(x, w):
        # the backend would transpose the whole weight to put it on the right at every call; as a
        # pair of halves on the
        # left it is read in place (two cores, 8 rows: f32 from 20 to 27 GB/s, int8 from 10 to 14)
        halves = w.reshape(2, w.shape[0] // 2, w.shape[1])
        twice = jnp.broadcast_to(x[None], (2, *x.shape))
        out = jax.lax.dot_general(
            halves,
            twice,
            (((2,), (2,)), ((0,), (0,))),
            precision=precision,
            preferred_element_type=out_type,
        )
        return jnp.transpose(out, (2, 0, 1)).reshape(x.shape[0], w.shape[0])
    return jax.lax.dot_general(
        x, w, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=out_type
    )


def _halved(x, w) -> bool:
    alone = jax.sharding.get_abstract_mesh().empty  # halves would not line up with shards
    return (
        platform() == "cpu"
        and alone
        and w.shape[0] % 2 == 0
        and x.shape[0] in HALVED.get(w.dtype.name, ())
    )
