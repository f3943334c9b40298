"""Causal attention through XLA, one block of queries at a time so that scores stay small."""

import jax
import jax.numpy as jnp

from pallas_kernels.dense import attend

BLOCK = 512  # queries scored at once


def causal_attention(q, k, v, lengths, *, scale, window=None, softcap=None):
    """Shapes as the package's function."""
    B, T, N, H = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, N // K, H)
    k, v = (jnp.transpose(x, (0, 2, 1, 3)) for x in (k, v))

    def block(q, first, keys):
        """Queries `first`.. of every row against the first `keys` keys."""
        query = first + jnp.arange(q.shape[1])[:, None]
        key = jnp.arange(keys)[None, :]
        seen = key <= query
        if window is not None:
            seen &= query - key < window
        seen = seen[None] & (key[None] < lengths[:, None, None])
        return attend(q, k[:, :, :keys], v[:, :, :keys], seen, scale=scale, softcap=softcap)

    if T <= BLOCK:
        out = block(q, 0, T)
    else:
        remat = jax.checkpoint(block, static_argnums=(1, 2))
        firsts = range(0, T, BLOCK)
        out = jnp.concatenate(
            [remat(q[:, i : i + BLOCK], i, min(i + BLOCK, T)) for i in firsts], axis=1
        )
    return out.reshape(B, T, N, H)
