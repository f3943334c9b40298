"""Which worker reads which slots: the work of a decode step cut into equal ranges.

The work is a line: row after row, in a row its kv heads, for each head the blocks of slots that the
row's query sees. Every worker takes an equal stretch of that line, wherever rows begin and end, so
that one long row among short ones, or a single row, keeps all workers busy. It follows from the
lengths alone and is computed in XLA, once a step for all layers that share a ring.
"""

import jax
import jax.numpy as jnp

ROW_FIELDS = RANGE_FIELDS = 8
COUNT, FIRST, LAST, SEEN, LENGTH = range(5)
ROW, HEAD, BLOCK, BLOCKS, PAIRS, PIECES_FROM = range(6)


def rows_of(
    lengths: jax.Array,
    counts: jax.Array,
    *,
    block: int,
    capacity: int,
    window: int | None,
    sinks: int,
) -> jax.Array:
    """What each row's query sees -> [B, ROW_FIELDS] int32.

    COUNT blocks of `block` slots from block FIRST on (wrapping after the ring's last block; at least
    one). LAST: the query's place in the ring (its slot less `sinks`), SEEN: how many places it sees,
    that one and those before it, LENGTH: positions held. Rows without a new token see nothing.
    """
    length = jnp.where(counts > 0, lengths, 0)
    ring = capacity - sinks
    last = jnp.where(length > sinks, jnp.remainder(length - 1 - sinks, ring), -1)
    seen = jnp.clip(length - sinks, 0, ring if window is None else min(window, ring))
    count = (jnp.minimum(length, capacity) + block - 1) // block
    first = jnp.zeros_like(count)
    if window is not None and window < capacity and not sinks:
        blocks = -(-capacity // block)
        start, stop = jnp.remainder(last - seen + 1, ring) // block, last // block
        wraps = jnp.remainder(last - seen + 1, ring) > last
        whole = wraps & (stop >= start)
        count = jnp.where(wraps, blocks - start, 1 - start) + stop + wraps.astype(jnp.int32)
        count = jnp.where(whole, blocks, count)
        first = jnp.where(whole, 0, start)
    empty = length == 0
    count = jnp.where(empty, 1, count)
    first = jnp.where(empty, 0, first)
    zero = jnp.zeros_like(count)
    fields = [count, first, last, seen, length, zero, zero, zero]
    return jnp.stack(fields, axis=1).astype(jnp.int32)


def ranges_of(rows: jax.Array, heads: int, workers: int) -> jax.Array:
    """Each worker's stretch of the line -> [workers, RANGE_FIELDS + ROW_FIELDS] int32.

    It begins in row ROW, kv head HEAD at the row's block number BLOCK, and holds BLOCKS blocks (none:
    nothing to do) of PAIRS (row, head) pairs. PIECES_FROM: the worker in whose stretch the first pair
    begins. Then follow the fields of row ROW.
    """
    B = rows.shape[0]
    count = rows[:, COUNT]
    row = jnp.arange(B, dtype=jnp.int32)
    before = jnp.where(row[None] <= row[:, None], count[None], 0)
    ends = heads * before.sum(axis=1, dtype=jnp.int32)  # where each row ends on the line
    share, extra = ends[-1] // workers, jnp.remainder(ends[-1], workers)
    worker = jnp.arange(workers, dtype=jnp.int32)
    start = worker * share + jnp.minimum(worker, extra)
    blocks = share + (worker < extra).astype(jnp.int32)

    def place(at):
        """The row, head and block number at a point of the line."""
        row = jnp.sum((ends[None] <= at[:, None]).astype(jnp.int32), axis=1)
        row = jnp.minimum(row, B - 1)
        inside = at - (ends[row] - count[row] * heads)
        return row, inside // count[row], jnp.remainder(inside, count[row])

    row, head, at = place(start)
    end_row, end_head, _ = place(start + jnp.maximum(blocks, 1) - 1)
    pairs = jnp.where(blocks > 0, (end_row - row) * heads + end_head - head + 1, 0)
    begin = start - at  # of the first pair, which an earlier worker may hold
    long = extra * (share + 1)
    pieces_from = jnp.where(
        begin < long, begin // (share + 1), extra + (begin - long) // jnp.maximum(share, 1)
    )
    zero = jnp.zeros_like(row)
    fields = [row, head, at, blocks, pairs, pieces_from, zero, zero]
    return jnp.concatenate([jnp.stack(fields, axis=1).astype(jnp.int32), rows[row]], axis=1)
