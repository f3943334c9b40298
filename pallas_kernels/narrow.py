"""Vectors kept in one byte an element: int8, or fp8 (e4m3; Micikevicius et al. 2022, section 3), each
with a scale of its own, its largest element over the type's largest.

fp8 is kept as its bits, in uint8: what only moves bytes then does just that (XLA's CPU backend would
rewrite all of a float8 array in float16 to write one element).
"""

import jax
import jax.numpy as jnp
import numpy as np

FP8 = jnp.float8_e4m3fn
TOPS = {np.dtype("int8"): 127.0, np.dtype("uint8"): 448.0}  # the largest, by how it is kept


def narrowed(x: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Vectors [..., H] -> (values of a dtype of TOPS [..., H], scales [...] float32): x is near
    values * scale. Zeros stay zeros; the scale of a vector with an infinity or NaN is not finite.
    """
    dtype, wide = np.dtype(dtype), x.astype(jnp.float32)
    top = TOPS[dtype]
    scale = jnp.abs(wide).max(axis=-1) / top
    steps = jnp.clip(wide / jnp.where(scale == 0.0, 1.0, scale)[..., None], -top, top)
    return rounded(steps, dtype), scale


def rounded(steps: jax.Array, dtype) -> jax.Array:
    """float32 numbers that a dtype of TOPS can hold -> the nearest that it does."""
    if dtype == np.uint8:
        return jax.lax.bitcast_convert_type(steps.astype(FP8), jnp.uint8)
    return jnp.round(steps).astype(dtype)


def widened(values: jax.Array, dtype) -> jax.Array:
    """values of a dtype of TOPS, not yet multiplied by their scales, as numbers of `dtype`."""
    if values.dtype == jnp.uint8:
        values = jax.lax.bitcast_convert_type(values, FP8)
    return values.astype(dtype)
