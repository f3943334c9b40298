"""Masked dense attention in XLA, the arithmetic that the plain backends share.

It knows nothing of caches or pages: it is given keys with the position each one holds.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.backend import one_cpu
from pallas_kernels.narrow import widened

NEVER = -1e30  # a finite "minus infinity": rows that see nothing stay finite and are masked to zero


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    *,
    scale: float,
    softcap: float | None,
    q_far: jax.Array | None = None,
    far: jax.Array | None = None,
) -> jax.Array:
    """q [B, T, K, G, H], k and v [B, K, S, H], seen [B, T, S] bool -> [B, T, K, G, H] in q's dtype.

    Keys marked in `far` [S] meet `q_far` (shaped as q) in place of q: attention sinks, which a
    query sees at the distance they have inside the buffer. k_scale, v_scale [B, K, S] float32: what
    keys and values of int8 or fp8 are to be multiplied by; it is their scores and weights that are.
    Scores and the softmax are float32. Values outside `seen` are never used.
    """
    if one_cpu():
        if k_scale is not None:
            return _in_blocks(q, k, v, seen, k_scale, v_scale, scale, softcap, q_far, far)
        return _on_cpu(q, k, v, seen, scale, softcap, q_far, far)
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    if k_scale is not None:  # the product's own operands: a compiler widens them on their way
        k, v = widened(k, q.dtype), widened(v, q.dtype)

    def scores_of(query):
        found = jnp.einsum(
            "btkgh,bksh->bkgts", query, k, precision=precision, preferred_element_type=jnp.float32
        )
        return found if k_scale is None else found * k_scale[:, :, None, None]

    scores = scores_of(q)
    if q_far is not None and far is not None:
        scores = jnp.where(far[None, None, None, None], scores_of(q_far), scores)
    seen = seen[:, None, None]  # [B, 1, 1, T, S]
    weights, total = _softmax(scores, seen, scale, softcap)  # total [B, K, G, T]
    # a value nobody sees may be NaN (poison, or memory never written): zero times NaN must not
    # reach the sum
    used = seen.any(axis=3)[:, 0, 0, None]  # [B, 1, S]
    v = jnp.where(used[..., None], v, jnp.zeros((), v.dtype))
    if v_scale is not None:
        weights = weights * jnp.where(used, v_scale, 0.0)[:, :, None, None]
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
    kind = _kind(q)
    k, v = k.reshape(B * K, S, H).astype(kind), v.reshape(B * K, S, H).astype(kind)
    scores = _scores(q, k)
    if q_far is not None and far is not None:
        scores = jnp.where(far[None, None, None, None], _scores(q_far, k), scores)
    weights, total = _softmax(scores, seen[:, None, None], scale, softcap)
    weights = weights.reshape(B * K, G * T, S).astype(kind)

    def clean():
        real = jnp.repeat(seen.any(axis=1), K, axis=0)[:, :, None]
        return _product(weights, jnp.where(real, v, jnp.zeros((), kind)), ((2,), (1,)))

    if T == 1:  # values nobody sees are looked at only where they did harm
        out = _product(weights, v, ((2,), (1,)))
        out = jax.lax.cond(jnp.isfinite(out).all(), lambda: out, clean)
    else:
        out = clean()
    out = out.reshape(B, K, G, T, H) / jnp.where(total == 0.0, 1.0, total)[..., None]
    return jnp.transpose(out, (0, 3, 1, 2, 4)).astype(q.dtype)


WIDENED = 1 << 17  # elements of keys that a step of `_in_blocks` has in full width, and of values


def _in_blocks(q, k, v, seen, k_scale, v_scale, scale, softcap, q_far, far):
    """As `_on_cpu` for keys and values of int8 or fp8. A product there would first widen all of them,
    so blocks of slots are widened one after another, under a running softmax (Milakov and Gimelshein
    2018).
    """
    B, T, K, G, H = q.shape
    S, kind = k.shape[2], _kind(q)
    size = min(S, max(64, WIDENED // (B * K * H)))

    def step(i, state):
        largest, total, out = state
        begin = jnp.minimum(i * size, S - size)
        # the last block may overlap the one before
        first = (begin + jnp.arange(size, dtype=jnp.int32) >= i * size)[None, None]

        def block(x):
            return jax.lax.dynamic_slice_in_dim(x, begin, size, axis=2)

        new = block(seen) & first
        used = new.any(axis=1)[:, None]  # [B, 1, size]
        key, value = (widened(block(x), kind).reshape(B * K, size, H) for x in (k, v))
        scores = _scores(q, key)
        if q_far is not None and far is not None:
            near = ~jax.lax.dynamic_slice_in_dim(far, begin, size)
            scores = jnp.where(near[None, None, None, None], scores, _scores(q_far, key))
        scores = scores * block(k_scale)[:, :, None, None] * scale
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        new = new[:, None, None]
        scores = jnp.where(new, scores, NEVER)
        top = jnp.maximum(largest, scores.max(axis=-1))
        weights = jnp.where(new, jnp.exp(scores - top[..., None]), 0.0)
        shrink = jnp.exp(largest - top)
        total = total * shrink + weights.sum(axis=-1)
        weights = weights * jnp.where(used, block(v_scale), 0.0)[:, :, None, None]
        weights = weights.reshape(B * K, G * T, size).astype(kind)
        if v.dtype != jnp.int8:  # which holds no NaN
            real = jnp.repeat(used, K, axis=1).reshape(B * K, size, 1)
            value = jnp.where(real, value, jnp.zeros((), kind))
        found = _product(weights, value, ((2,), (1,))).reshape(B, K, G, T, H)
        return top, total, out * shrink[..., None] + found

    rows = (B, K, G, T)
    zeros = jnp.zeros(rows, jnp.float32)
    start = (jnp.full(rows, NEVER, jnp.float32), zeros, jnp.zeros((*rows, H), jnp.float32))
    _, total, out = jax.lax.fori_loop(0, -(-S // size), step, start)
    out = out / jnp.where(total == 0.0, 1.0, total)[..., None]
    return jnp.transpose(out, (0, 3, 1, 2, 4)).astype(q.dtype)


def _kind(q):
    """What products on CPU take. A single query is bound by memory: narrowing the keys would only
    copy them.
    """
    return jnp.bfloat16 if q.dtype == jnp.bfloat16 and q.shape[1] > 1 else jnp.float32


def _product(a, b, contracted):
    return jax.lax.dot_general(
        a,
        b,
        (contracted, ((0,), (0,))),
        precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _scores(q, k):
    """q [B, T, K, G, H], k [B * K, S, H] -> float32 [B, K, G, T, S]."""
    B, T, K, G, H = q.shape
    query = jnp.transpose(q, (0, 2, 3, 1, 4)).reshape(B * K, G * T, H).astype(k.dtype)
    if G * T <= FEW:
        found = [_product(k, query[:, i], ((2,), (1,))) for i in range(G * T)]
        return jnp.stack(found, axis=1).reshape(B, K, G, T, -1)
    return _product(query, k, ((2,), (2,))).reshape(B, K, G, T, -1)


def _softmax(scores, seen, scale, softcap):
    """The weights of scores [B, K, G, T, S] before division by their sums, and the sums."""
    scores = scores * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(seen, scores, NEVER)
    weights = jnp.where(seen, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    return weights, weights.sum(-1)
