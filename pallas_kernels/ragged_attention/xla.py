"""Ragged paged ring attention through XLA: gather the pages of each row, then masked dense
attention.

Reads `span` slots a row, not the capacity. With `table=None` nothing is gathered: row b owns page
b.
"""

import jax.numpy as jnp

from pallas_kernels.dense import attend
from pallas_kernels.ring import position_of


def ragged_attention(
    q,
    k_pages,
    v_pages,
    table,
    starts,
    counts,
    lengths,
    *,
    capacity,
    scale,
    window=None,
    softcap=None,
    sinks=0,
    q_far=None,
    max_count,
    span,
    packed,
):
    """Shapes as the package's function."""
    T, N, H = q.shape
    P, K, page_size, _ = k_pages.shape
    B = lengths.shape[0]
    k, v = (_rows(pages, table, span) for pages in (k_pages, v_pages))
    slots = jnp.arange(k.shape[2], dtype=jnp.int32)
    key = position_of(slots, lengths, capacity, sinks)[:, None, :]  # [B, 1, S]
    index = jnp.arange(max_count, dtype=jnp.int32)
    query = ((lengths - counts)[:, None] + index[None])[:, :, None]  # [B, max_count, 1]
    seen = (key >= 0) & (key <= query) & (index[None] < counts[:, None])[:, :, None]
    if window is not None:
        seen &= (query - key < window) | (key < sinks)
    take = jnp.minimum(
        starts[:, None] + index[None], T - 1
    )  # [B, max_count]: where row b's queries lie

    def rectangle(x):
        x = x[take] if packed else x.reshape(B, max_count, N, H)
        return x.reshape(B, max_count, K, N // K, H)

    out = attend(
        rectangle(q),
        k,
        v,
        seen,
        scale=scale,
        softcap=softcap,
        q_far=None if q_far is None else rectangle(q_far),
        far=slots < sinks,
    ).reshape(B, max_count, N, H)
    if not packed:
        return out.reshape(T, N, H)
    put = jnp.where(index[None] < counts[:, None], take, T)  # T: out of bounds, dropped
    return jnp.zeros_like(q).at[put].set(out, mode="drop")


def _rows(pages, table, span):
    """pages [P, K, page_size, H] -> each row's first `span` slots [B, K, span, H]."""
    P, K, page_size, H = pages.shape
    if table is None:
        return pages[:, :, :span]
    if page_size >= span:
        return pages[:, :, :span][table[:, 0]]
    count = -(-span // page_size)
    rows = jnp.transpose(pages[table[:, :count]], (0, 2, 1, 3, 4))
    return rows.reshape(rows.shape[0], K, count * page_size, H)
