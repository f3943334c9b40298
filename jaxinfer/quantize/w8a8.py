"""Int8 weights times int8 activations, whose scales are found as they come: dynamic, one a row.

The weights are those of round to nearest (`rtn.round_rows`).
"""

import jax
import jax.numpy as jnp


def round_activations(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [T, in] -> (int8 [T, in], step [T, 1] float32): each row's largest is 127 steps."""
    wide = x.astype(jnp.float32)
    top = jnp.abs(wide).max(axis=1, keepdims=True)
    step = jnp.where(top > 0, top / 127.0, jnp.ones_like(top))
    return jnp.round(wide / step).astype(jnp.int8), step
