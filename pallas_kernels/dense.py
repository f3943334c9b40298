"""Masked dense attention in XLA, the arithmetic that the plain backends share.

It knows nothing of caches or pages: it is given keys with the position each one holds.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.backend import one_cpu

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
    if one_cpu():
        return _on_cpu(q, k, v, seen, scale, softcap, q_far, far)
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    def scores_of(query):
        return jnp.einsum(
            "btkgh,bksh->bkgts", query, k, precision=precision, preferred_element_type=jnp.float32
        )

    scores = scores_of(q)
    if q_far is not None and far is not None:
        scores = jnp.where(far[None, None, None, None], scores_of(q_far), scores)
    seen = seen[:, None, None]  # [B, 1, 1, T, S]
    weights, total = _softmax(scores, seen, scale, softcap)  # total [B, K, G, T]
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


FEW = 3  # query rows that share their keys, up to which a product for each beats one for all


def _on_cpu(q, k, v, seen, scale, softcap, q_far, far):
    """As `attend`, in the forms that XLA's CPU backend reads in place: batches flattened to one axis,
    weights on the left, for few rows a matrix-vector product each, and one query a row without a
    copy of the values. Two cores, all of a 360M model's layers, ms a step, from the general form to
    this one: 8 rows of 1,024 slots 62 to 19 (reading the slots once takes 17), 1 row of 256 2.4 to
    0.9; 128 queries over 512 slots, us a layer: 2,650 to 1,060, bfloat16 2,600 to 790.
    """
    B, T, K, G, H = q.shape
    S = k.shape[2]
    # a single query is bound by memory: narrowing the keys would only copy them
    kind = jnp.bfloat16 if q.dtype == jnp.bfloat16 and T > 1 else jnp.float32
    k, v = k.reshape(B * K, S, H).astype(kind), v.reshape(B * K, S, H).astype(kind)

    def product(a, b, contracted):
        return jax.lax.dot_general(
            a,
            b,
            (contracted, ((0,), (0,))),
            precision=jax.lax.Precision.HIGHEST if kind == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )

    def scores_of(query):
        query = jnp.transpose(query, (0, 2, 3, 1, 4)).reshape(B * K, G * T, H).astype(kind)
        if G * T <= FEW:
            found = [product(k, query[:, i], ((2,), (1,))) for i in range(G * T)]
            return jnp.stack(found, axis=1).reshape(B, K, G, T, S)
        return product(query, k, ((2,), (2,))).reshape(B, K, G, T, S)

    scores = scores_of(q)
    if q_far is not None and far is not None:
        scores = jnp.where(far[None, None, None, None], scores_of(q_far), scores)
    weights, total = _softmax(scores, seen[:, None, None], scale, softcap)
    weights = weights.reshape(B * K, G * T, S).astype(kind)

    def clean():
        real = jnp.repeat(seen.any(axis=1), K, axis=0)[:, :, None]
        return product(weights, jnp.where(real, v, jnp.zeros((), kind)), ((2,), (1,)))

    if T == 1:  # values nobody sees are looked at only where they did harm
        out = product(weights, v, ((2,), (1,)))
        out = jax.lax.cond(jnp.isfinite(out).all(), lambda: out, clean)
    else:
        out = clean()
    out = out.reshape(B, K, G, T, H) / jnp.where(total == 0.0, 1.0, total)[..., None]
    return jnp.transpose(out, (0, 3, 1, 2, 4)).astype(q.dtype)


def _softmax(scores, seen, scale, softcap):
    """The weights of scores [B, K, G, T, S] before division by their sums, and the sums."""
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(seen, scores, NEVER)
    weights = jnp.where(seen, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    return weights, weights.sum(-1)
