"""Masked dense attention in XLA, the arithmetic that the plain backends share.

It knows nothing of caches or pages: it is given keys with the position each one holds.
"""

import jax
import jax.numpy as jnp

NEVER = -1e30  # a finite "minus infinity": rows that see nothing stay finite and are masked to zero


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    *,
    scale: float,
    softcap: float | None,
    q_far: jax.Array | None = None,
    far: jax.Array | None = None,
) -> jax.Array:
    """q [B, T, K, G, H], k and v [B, K, S, H], seen [B, T, S] bool -> [B, T, K, G, H] in q's dtype.

    Keys marked in `far` [S] meet `q_far` (shaped as q) in place of q: attention sinks, which a
    query sees at the distance they have inside the buffer. Scores and the softmax are float32.
    Values outside `seen` are never used.
    """
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def scores_of(query):
        return jnp.einsum(
            "btkgh,bksh->bkgts", query, k, precision=precision, preferred_element_type=jnp.float32
        )

    scores = scores_of(q)
    if q_far is not None and far is not None:
        scores = jnp.where(far[None, None, None, None], scores_of(q_far), scores)
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    seen = seen[:, None, None]  # [B, 1, 1, T, S]
    scores = jnp.where(seen, scores, NEVER)
    weights = jnp.where(seen, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    total = weights.sum(-1)  # [B, K, G, T]
    # a value nobody sees may be NaN (poison, or memory never written): zero times NaN must not
    # reach the sum
    v = jnp.where(seen.any(axis=3)[:, 0, 0, None, :, None], v, jnp.zeros((), v.dtype))
    out = jnp.einsum(
        "bkgts,bksh->btkgh",
        weights.astype(v.dtype),
        v,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    total = jnp.transpose(total, (0, 3, 1, 2))[..., None]
    return (out / jnp.where(total == 0.0, 1.0, total)).astype(q.dtype)
