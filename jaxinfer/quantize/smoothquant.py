"""SmoothQuant (Xiao et al. 2023): outliers of activations are moved into the weights, which bear them."""

import jax
import jax.numpy as jnp

ALPHA = 0.5


def smoothing(top_x: jax.Array, top_w: jax.Array, alpha: float = ALPHA) -> jax.Array:
    """s [in] = max|x|^alpha / max|w|^(1 - alpha) (equation 4): activations are divided by it and the
    columns of the weight multiplied.

    top_x, top_w: the largest magnitudes [in] of activations (on calibration text) and of columns.
    Where one of them is zero, 1.
    """
    live = (top_x > 0) & (top_w > 0)
    safe_x, safe_w = (jnp.where(live, top, jnp.ones_like(top)) for top in (top_x, top_w))
    return jnp.where(live, safe_x**alpha / safe_w ** (1 - alpha), jnp.ones_like(top_x))
