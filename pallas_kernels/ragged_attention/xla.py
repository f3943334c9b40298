"""Ragged paged ring attention through XLA: gather the pages of each row, then masked dense
attention.

Reads `span` slots a row, not the capacity. With `table=None` nothing is gathered: row b owns page
b. On CPU the rows of a packed batch are walked in blocks of queries, so that what is not there
costs nothing; elsewhere they fill a rectangle.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.backend import one_cpu
from pallas_kernels.dense import attend
from pallas_kernels.ring import position_of, slot_of

BLOCK = 128  # queries of one row that a step of the walk takes


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
    k_scale=None,
    v_scale=None,
):
    """Shapes as the package's function."""
    T, N, H = q.shape
    K = k_pages.shape[1]
    B = lengths.shape[0]

    def attention(q, q_far, table, lengths, query):
        """q, q_far [R, M, N, H] at the positions query [R, M] (-1: none) of R rows -> [R, M, N, H]."""
        R, M = query.shape
        k, v = (_rows(pages, table, span) for pages in (k_pages, v_pages))
        scales = [None if x is None else _rows(x, table, span) for x in (k_scale, v_scale)]
        slots = jnp.arange(k.shape[2], dtype=jnp.int32)
        key, query = position_of(slots, lengths, capacity, sinks)[:, None, :], query[:, :, None]
        seen = (key >= 0) & (key <= query)
        if window is not None:
            seen &= (query - key < window) | (key < sinks)
        rules: dict[str, Any] = dict(scale=scale, softcap=softcap, far=slots < sinks)
        if q_far is not None:
            rules["q_far"] = q_far.reshape(R, M, K, N // K, H)
        found = attend(q.reshape(R, M, K, N // K, H), k, v, seen, *scales, **rules)
        return found.reshape(R, M, N, H)

    if packed and max_count > 1 and one_cpu():
        return _walk(attention, q, q_far, table, starts, counts, lengths, min(BLOCK, max_count))
    index = jnp.arange(max_count, dtype=jnp.int32)[None]
    query = jnp.where(index < counts[:, None], (lengths - counts)[:, None] + index, -1)
    take = jnp.minimum(starts[:, None] + index, T - 1)  # [B, max_count]: row b's queries in T

    def rectangle(x):
        return None if x is None else x[take] if packed else x.reshape(B, max_count, N, H)

    out = attention(rectangle(q), rectangle(q_far), table, lengths, query)
    if not packed:
        return out.reshape(T, N, H)
    put = jnp.where(query >= 0, take, T)  # T: out of bounds, dropped
    return jnp.zeros_like(q).at[put].set(out, mode="drop")


def written(
    k, v, k_pages, v_pages, table, starts, counts, lengths, *, capacity, sinks, max_count
) -> tuple[jax.Array, jax.Array]:
    """The pages with the new tokens' keys and values; shapes as `attend_and_write`."""
    index = jnp.arange(max_count, dtype=jnp.int32)[None]
    slot = slot_of(jnp.maximum((lengths - counts)[:, None] + index, 0), capacity, sinks)
    size = k_pages.shape[2]
    row = jnp.arange(lengths.shape[0], dtype=jnp.int32)[:, None]
    page = jnp.broadcast_to(row, slot.shape) if table is None else table[row, slot // size]
    page = jnp.where(index < counts[:, None], page, k_pages.shape[0])  # past the end: dropped
    token = jnp.minimum(starts[:, None] + index, k.shape[0] - 1)
    k_pages, v_pages = (
        pages.at[page, :, slot % size].set(x[token].astype(pages.dtype), mode="drop")
        for pages, x in ((k_pages, k), (v_pages, v))
    )
    return k_pages, v_pages


def _walk(attention, q, q_far, table, starts, counts, lengths, size):
    """Row after row, `size` queries at a time."""
    T, N, H = q.shape
    blocks = (counts + size - 1) // size
    ends = jnp.cumsum(blocks)
    if table is None:
        table = jnp.arange(lengths.shape[0], dtype=jnp.int32)[:, None]
    index = jnp.arange(size, dtype=jnp.int32)
    tail = jnp.zeros((size, N, H), q.dtype)  # a block may reach past the end
    q = jnp.concatenate([q, tail])
    q_far = None if q_far is None else jnp.concatenate([q_far, tail])

    def step(i, out):
        row = jnp.searchsorted(ends, i, side="right").astype(jnp.int32)
        first = (i - (ends[row] - blocks[row])) * size
        start = starts[row] + first
        real = first + index < counts[row]
        query = jnp.where(real, lengths[row] - counts[row] + first + index, -1)

        def block(x):
            return jax.lax.dynamic_slice(x, (start, 0, 0), (size, N, H))[None]

        far = None if q_far is None else block(q_far)
        found = attention(block(q), far, table[row][None], lengths[row][None], query[None])
        found = jnp.where(real[None, :, None, None], found, block(out))  # the next row's stay
        return jax.lax.dynamic_update_slice(out, found[0], (start, 0, 0))

    return jax.lax.fori_loop(0, ends[-1], step, jnp.zeros_like(q))[:T]


def _rows(pages, table, span):
    """pages [P, K, page_size, ...] -> each row's first `span` slots [B, K, span, ...]."""
    _, K, page_size, *inner = pages.shape
    if table is None:
        return pages[:, :, :span]
    if page_size >= span and table.shape[0] == 1:
        begin = (table[0, 0], *[0] * (pages.ndim - 1))
        return jax.lax.dynamic_slice(pages, begin, (1, K, span, *inner))
    if page_size >= span:
        return pages[:, :, :span][table[:, 0]]
    count = -(-span // page_size)
    rows = jnp.swapaxes(pages[table[:, :count]], 1, 2)
    return rows.reshape(rows.shape[0], K, count * page_size, *inner)
