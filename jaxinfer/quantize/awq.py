"""AWQ (Lin et al. 2023): weights that meet large activations are made large, so that they round well.

What a rounding costs is measured exactly, without keeping activations: with G = X^T X of the
calibration text, |X d^T|^2 summed over rows d of the weight's error is sum(d G d^T).
"""

import jax
import jax.numpy as jnp

from jaxinfer.quantize import grid

STEPS = 20  # of the searches, as in the authors' code
LEAST = 0.5  # to what part of itself a group's largest weight may be clipped


def loss(error: jax.Array, gram: jax.Array) -> jax.Array:
    """The squared error of a layer's outputs, of its weight's error [out, in]."""
    product = jnp.matmul(error, gram, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(product * error)


def scales(
    w: jax.Array, gram: jax.Array, mean_x: jax.Array, group: int | None, symmetric: bool
) -> jax.Array:
    """s [in] of s = mean|x|^a that costs least (equations 4 and 5), a of 0, 1/20, ..., 19/20.

    w [out, in] float32, gram [in, in], mean_x [in]: mean magnitudes of the activations. Columns of
    the weight are to be multiplied by s, activations divided. a = 0 is round to nearest.
    """

    def candidate(ratio):
        s = jnp.maximum(mean_x**ratio, 1e-4)
        return s / jnp.sqrt(s.max() * s.min())

    def cost(ratio):
        s = candidate(ratio)
        return loss(grid.nearest(w * s[None], group, symmetric) / s[None] - w, gram)

    ratios = jnp.arange(STEPS, dtype=jnp.float32) / STEPS
    return candidate(ratios[jnp.argmin(jax.lax.map(cost, ratios))])


def clip(w: jax.Array, gram: jax.Array, group: int, symmetric: bool) -> jax.Array:
    """w with the largest weights of each group cut where that costs less (section 3.2, "weight
    clipping"): the outputs of each group alone are compared, for cuts from 1 to LEAST.
    """
    out, columns = w.shape
    grouped = w.reshape(out, columns // group, group)
    index = jnp.arange(columns // group)
    own = gram.reshape(columns // group, group, columns // group, group)[index, :, index]
    top = abs(grouped).max(axis=-1, keepdims=True)

    def better(step, best):
        least, kept = best
        part = 1 - step.astype(jnp.float32) / STEPS
        cut = jnp.clip(grouped, -top * part, top * part)
        scale, zero = grid.four_bit(cut, symmetric)
        error = grid.from_nibbles(grid.nibbles(cut, scale, zero), scale, zero) - grouped
        product = jnp.einsum("ogi,gij->ogj", error, own, precision=jax.lax.Precision.HIGHEST)
        cost = jnp.sum(product * error, axis=-1, keepdims=True)
        return jnp.minimum(cost, least), jnp.where(cost < least, part, kept)

    start = jnp.full(top.shape, jnp.inf, jnp.float32), jnp.ones(top.shape, jnp.float32)
    _, kept = jax.lax.fori_loop(0, int(STEPS * (1 - LEAST)), better, start)
    return jnp.clip(grouped, -top * kept, top * kept).reshape(out, columns)
