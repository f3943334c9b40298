"""Causal attention over whole sequences, no cache: scoring, training, the logits of a prompt."""

import jax
import jax.numpy as jnp

from pallas_kernels.backend import kernels, platform
from pallas_kernels.causal_attention import cudnn, reference, xla

BACKENDS = {
    "reference": reference.causal_attention,
    "xla": xla.causal_attention,
    "cudnn": cudnn.causal_attention,
}


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    backend: str | None = None,
) -> jax.Array:
    """softmax(scale q k^T) v where position t of a row sees its positions max(0, t - window + 1) ..
    t.

    q [B, T, N, H]; k, v [B, T, K, H] with N a multiple of K; lengths [B]: keys at or past a row's
    length are never seen (outputs there are unspecified but finite). Returns [B, T, N, H].
    Differentiable. A named `backend` never falls back: it raises NotImplementedError for what it
    cannot do.
    """
    if q.ndim != 4 or k.shape != v.shape or q.shape[2] % k.shape[2]:
        raise ValueError(
            "causal_attention needs q [B, T, N, H] and k, v [B, T, K, H] with N a multiple of K, got "
            f"{q.shape=}, {k.shape=}, {v.shape=}"
        )
    if backend is None:
        fits = kernels() and platform() == "gpu" and q.dtype == jnp.bfloat16 and softcap is None
        backend = "cudnn" if fits and q.shape[3] <= 128 and q.shape[3] % 8 == 0 else "xla"
    return BACKENDS[backend](q, k, v, lengths, scale=scale, window=window, softcap=softcap)
