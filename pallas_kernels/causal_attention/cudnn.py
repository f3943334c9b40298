"""Causal attention through cuDNN's fused kernel, as jax.nn.dot_product_attention calls it."""

import jax


def causal_attention(q, k, v, lengths, *, scale, window=None, softcap=None):
    """Shapes as the package's function; bf16 or f16, no soft cap."""
    if softcap is not None:
        raise NotImplementedError(f"cuDNN's attention has no soft cap, got {softcap=}")
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=True,
        key_value_seq_lengths=lengths,
        query_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
