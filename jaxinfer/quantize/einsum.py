"""The one einsum that knows quantized weights, and what suits it where it runs."""

import jax
import jax.numpy as jnp

from jaxinfer.quantize.tensor import INTEGER, QTensor, Weight, grid_values
from jaxinfer.quantize.w8a8 import round_activations
from pallas_kernels.backend import hopper, platform
from pallas_kernels.skinny_matmul.weight import GROUP

# XLA's CPU backend, by the type of a weight: how many rows of activations it meets faster as a pair
# of halves
HALVED = {"float32": range(2, 65), "bfloat16": range(16, 65), "int8": range(2, 9)}


def einsum(x: jax.Array, w: Weight) -> jax.Array:
    """x [T, in] times w [out, in], contracted over `in` -> [T, out] in x's dtype; sums in float32
    (int32 where activations are rounded to int8).
    """
    if platform() == "cpu" and x.shape[0] == 1 and _narrow(w):
        # XLA's CPU backend first widens the whole weight when one row meets a narrow type; two rows
        # stay narrow
        pair = jax.lax.optimization_barrier(jnp.broadcast_to(x, (2, *x.shape[1:])))
        return _product(pair, w)[:1]
    return _product(x, w)


def skinny(x: jax.Array, w: Weight) -> bool:
    """Whether x [T, in] times w is a product of few rows that kernels of its own run."""
    few = hopper() and x.shape[0] <= 64 and x.dtype == jnp.bfloat16
    if not isinstance(w, QTensor):
        return few
    readable = w.group == (GROUP if w.kind == "int4" else None)
    return few and readable and w.smooth is None and w.method not in INTEGER


def _narrow(w: Weight) -> bool:
    return isinstance(w, QTensor) or w.dtype != jnp.float32


def _product(x, w):
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    if not isinstance(w, QTensor):
        return _contract(x, w, exact, jnp.float32).astype(x.dtype)
    if w.smooth is not None:
        x = (x.astype(jnp.float32) * w.smooth[None]).astype(x.dtype)
    if w.method in INTEGER:
        return _integers(x, w)
    if w.group is not None:  # sums cannot be scaled group by group: widened whole
        return _contract(x, grid_values(w).astype(x.dtype), exact, jnp.float32).astype(x.dtype)
    out = _contract(x, w.values.astype(x.dtype), None, jnp.float32)
    return (out * w.scale[None, :]).astype(x.dtype)


def _integers(x, w):
    """int8 x int8 -> int32; columns that are kept as outliers are multiplied apart."""
    apart = None
    if w.columns is not None and w.outliers is not None:
        exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        apart = _contract(x[:, w.columns], w.outliers.astype(x.dtype), exact, jnp.float32)
        x = x.at[:, w.columns].set(jnp.zeros((), x.dtype))
    narrow, step = round_activations(x)
    out = _contract(narrow, w.values, None, jnp.int32).astype(jnp.float32) * step
    out = out * w.scale[None, :]
    return (out if apart is None else out + apart).astype(x.dtype)


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
