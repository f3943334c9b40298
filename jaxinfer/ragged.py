"""The ragged batch: new tokens of several sequences in one step, whatever each of them is doing.

Prefill, a chunk of prefill, decode and verification are the same step with different counts.
"""

import jax
import jax.numpy as jnp
from flax import struct


class Ragged(struct.PyTreeNode):
    """tokens, positions [T] int32 (position -1: padding); rows [T] int32: the row of each token.
    starts, counts [B]: where row b's tokens lie in T; lengths [B]: its context, new tokens
    included.
    reach [B]: the length that length-dependent rope looks at. slots [B]: the cache slot of each row
    (None: row b is slot b). Static: max_count >= counts; span: cache slots attention reads per row
    (None: all);
    packed: False promises T = B * max_count with starts[b] = b * max_count.
    """

    tokens: jax.Array
    positions: jax.Array
    rows: jax.Array
    starts: jax.Array
    counts: jax.Array
    lengths: jax.Array
    reach: jax.Array
    slots: jax.Array | None = None
    max_count: int = struct.field(pytree_node=False, default=1)
    span: int | None = struct.field(pytree_node=False, default=None)
    packed: bool = struct.field(pytree_node=False, default=False)


def rectangle(
    tokens: jax.Array,
    counts: jax.Array,
    before: jax.Array,
    *,
    reach: jax.Array | None = None,
    span: int | None = None,
) -> Ragged:
    """tokens [B, T], of which row b uses the first counts[b], after before[b] positions already in
    the cache.
    """
    B, T = tokens.shape
    index = jnp.arange(T, dtype=jnp.int32)[None]
    lengths = before + counts
    positions = jnp.where(index < counts[:, None], before[:, None] + index, -1)
    return Ragged(
        tokens=tokens.reshape(B * T),
        positions=positions.reshape(B * T),
        rows=jnp.repeat(jnp.arange(B, dtype=jnp.int32), T),
        starts=jnp.arange(B, dtype=jnp.int32) * T,
        counts=counts,
        lengths=lengths,
        reach=lengths if reach is None else reach,
        max_count=T,
        span=span,
    )


def pack(
    tokens: jax.Array,
    counts: jax.Array,
    before: jax.Array,
    slots: jax.Array,
    live: jax.Array,
    *,
    reach: jax.Array,
    max_count: int,
    span: int | None = None,
) -> Ragged:
    """tokens [T]: row b's counts[b] new tokens follow those of row b - 1; what is left at the end
    is padding.

    live [B] bool: a row that is not keeps its place in T, but its tokens are padding.
    """
    (T,) = tokens.shape
    ends = jnp.cumsum(counts)
    index = jnp.arange(T, dtype=jnp.int32)
    rows = jnp.minimum(jnp.searchsorted(ends, index, side="right"), counts.shape[0] - 1).astype(
        jnp.int32
    )
    starts = (ends - counts).astype(jnp.int32)
    real = (index < ends[-1]) & live[rows]
    positions = jnp.where(real, before[rows] + index - starts[rows], -1)
    counts = jnp.where(live, counts, 0)
    return Ragged(
        tokens=tokens,
        positions=positions,
        rows=rows,
        starts=starts,
        counts=counts,
        lengths=before + counts,
        reach=reach,
        slots=slots,
        max_count=max_count,
        span=span,
        packed=True,
    )


def last_tokens(hidden: jax.Array, batch: Ragged) -> jax.Array:
    """hidden [T, D] -> [B, D]: that of each row's last new token (row 0 of T where a row has none)."""
    return hidden[jnp.maximum(batch.starts + batch.counts - 1, 0)]
