"""Causal attention over whole sequences in plain jnp: the specification."""

import jax
import jax.numpy as jnp


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """q [B, T, N, H], k and v [B, T, K, H], lengths [B] -> [B, T, N, H]; see the package's
    function.
    """
    B, T, N, H = q.shape
    K = k.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    query, key = jnp.arange(T)[:, None], jnp.arange(T)[None, :]
    seen = key <= query
    if window is not None:
        seen &= query - key < window
    seen = seen[None] & (key[None] < lengths[:, None, None])
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    weights = jnp.where(jnp.isnan(weights), 0.0, weights)
    v = jnp.where((jnp.arange(T)[None] < lengths[:, None])[:, :, None, None], v, 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, v, precision="highest")
