"""The one einsum that knows quantized weights, and what suits it where it runs."""

import jax
import jax.numpy as jnp

from jaxinfer.quantize.tensor import INTEGER, QTensor, Weight, grid_values, parts
from jaxinfer.quantize.w8a8 import round_activations
from pallas_kernels.backend import hopper, one_cpu, platform
from pallas_kernels.skinny_matmul import skinny_matmul
from pallas_kernels.skinny_matmul.weight import GROUP

# XLA's CPU backend, by the type of a weight: how many rows of activations it meets faster as a pair
# of halves
HALVED = {"float32": range(2, 65), "bfloat16": range(16, 65), "int8": range(2, 9)}
# (neither halves nor digits would line up with shards)
DIGITS = 32  # rows of activations up to which whole-row int8 weights meet them as digits there


def einsum(x: jax.Array, w: Weight, dtype=None) -> jax.Array:
    """x [T, in] times w [out, in], contracted over `in` -> [T, out] in `dtype` (None: x's); sums in
    float32 (int32 where activations are rounded to int8).
    """
    dtype = dtype or x.dtype
    if isinstance(w, QTensor) and skinny(x, w):  # the logits of a decode step, above all
        values, scale, zero = parts(w)
        return skinny_matmul(x, values, scale, zero=zero, out_dtype=dtype)
    if one_cpu() and x.shape[0] == 1 and _narrow(w) and not _in_digits(x, w):
        # XLA's CPU backend first widens the whole weight when one row meets a narrow type; two rows
        # stay narrow
        pair = jax.lax.optimization_barrier(jnp.broadcast_to(x, (2, *x.shape[1:])))
        return _product(pair, w, dtype)[:1].astype(dtype)
    return _product(x, w, dtype).astype(dtype)


def skinny(x: jax.Array, w: Weight) -> bool:
    """Whether x [T, in] times w is a product of few rows that kernels of its own run."""
    few = hopper() and x.shape[0] <= 64 and x.dtype == jnp.bfloat16
    if not isinstance(w, QTensor):
        return few
    readable = w.group == (GROUP if w.kind == "int4" else None)
    readable = readable and (w.kind != "int4" or w.scale.dtype == jnp.bfloat16)
    plain = w.smooth is None and w.order is None and w.method not in INTEGER
    return few and readable and plain


def _narrow(w: Weight) -> bool:
    return isinstance(w, QTensor) or w.dtype != jnp.float32


def _product(x, w, dtype):
    """Their sums: float32, or already in `dtype` where they need nothing more."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    # matrix units round their float32 sums while they store them; XLA would store them in float32 and
    # round them in a kernel of its own (8,192 rows of an 8B model on an H200: 10.7 of 229 ms)
    stored = jnp.float32 if platform() == "cpu" else dtype
    if not isinstance(w, QTensor):
        return _contract(x, w, exact, stored)
    if w.smooth is not None:
        x = (x.astype(jnp.float32) * w.smooth[None]).astype(x.dtype)
    if w.order is not None:
        x = x[:, w.order]
    if w.method in INTEGER:
        return _integers(x, w)
    if w.group is not None:  # sums cannot be scaled group by group: widened whole
        wide = grid_values(w).astype(x.dtype)
        # XLA's CPU backend would widen each weight once for every row of x
        wide = jax.lax.optimization_barrier(wide) if platform() == "cpu" else wide
        return _contract(x, wide, exact, stored)
    if _in_digits(x, w):
        return _by_digits(x, w.values, w.scale)
    return _widened(x, w.values, w.scale)


def _integers(x, w):
    """int8 x int8 -> int32; columns that are kept as outliers are multiplied apart."""
    apart = None
    if w.columns is not None and w.outliers is not None:
        exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        # XLA's CPU backend lacks a loop for narrow types of so few columns
        kind = jnp.float32 if platform() == "cpu" else x.dtype
        few = x[:, w.columns].astype(kind)
        apart = _contract(few, w.outliers.astype(kind), exact, jnp.float32)
        x = x.at[:, w.columns].set(jnp.zeros((), x.dtype))
    narrow, step = round_activations(x)
    out = _contract(narrow, w.values, None, jnp.int32).astype(jnp.float32) * step
    out = out * w.scale[None, :]
    return out if apart is None else out + apart


def _widened(x, values, scale):
    return _contract(x, values.astype(x.dtype), None, jnp.float32) * scale[None, :]


def _in_digits(x, w) -> bool:
    return one_cpu() and isinstance(w, QTensor) and w.method == "int8" and x.shape[0] <= DIGITS


@jax.custom_jvp
def _by_digits(x, values, scale):
    """As `_widened`, float32, exact to 2**-16 of each row's largest activation.

    XLA's CPU backend widens the whole weight once a loop and then streams float32. Two int8 digits
    of an activation, a row for each, meet the weight as it is stored (24 matrices of 960 x 2,560 in
    a loop, ms of two cores: 1 row 9.6 to 2.5, 8 rows 12.8 to 6.7, 32 rows 18.1 to 15.8; 236 MB of
    temporaries to none).
    """
    wide = x.astype(jnp.float32)
    high, coarse = round_activations(wide)
    low, fine = round_activations(wide - high.astype(jnp.float32) * coarse)
    both = _contract(jnp.concatenate([high, low]), values, None, jnp.int32).astype(jnp.float32)
    high, low = jnp.split(both, 2)
    return (high * coarse + low * fine) * scale[None, :]


@_by_digits.defjvp
def _by_digits_jvp(primals, tangents):
    x, values, scale = primals
    x_tangent, _, scale_tangent = tangents  # rounding has no slope of its own

    def widened(x, scale):
        return _widened(x, values, scale)

    _, tangent = jax.jvp(widened, (x, scale), (x_tangent, scale_tangent))
    return _by_digits(*primals), tangent


def _contract(x, w, precision, out_type):
    if _halved(x, w):
        # the backend would transpose the whole weight to put it on the right at every call; as a
        # pair of halves on the
        # left it is read in place (two cores, 8 rows: f32 from 20 to 27 GB/s, int8 from 10 to 14)
        halves = w.reshape(2, w.shape[0] // 2, w.shape[1])
        # stacked, not broadcast: that would fuse what makes x into the product, where an addend of
        # one column is read past its end (a crash in jaxlib 0.10)
        twice = jnp.stack([x, x])
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
    fits = w.shape[0] % 2 == 0 and x.shape[0] in HALVED.get(w.dtype.name, ())
    return fits and one_cpu()
