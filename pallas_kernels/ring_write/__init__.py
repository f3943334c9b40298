"""Putting the keys and values of new tokens into their slots of a paged ring cache, in place."""

from collections.abc import Sequence

import jax

from pallas_kernels.ring_write import mosaic_tpu, reference

BACKENDS = {"mosaic_tpu": mosaic_tpu.ring_write}
specification = reference.ring_write


def ring_write(
    pages: Sequence[jax.Array],
    new: Sequence[jax.Array],
    table: jax.Array | None,
    starts: jax.Array,
    counts: jax.Array,
    lengths: jax.Array,
    *,
    capacity: int,
    sinks: int = 0,
    max_count: int,
    backend: str = "mosaic_tpu",
) -> tuple[jax.Array, ...]:
    """The pages with row b's counts[b] new tokens in the slots of their positions.

    pages: keys and values [P, K, page_size, H], and where those are int8 or fp8 then their scales,
    [P, K, page_size] float32; updated in place where the caller gives them up. new: what goes into
    each, [T, K, H] and [T, K]: row b's new tokens lie at starts[b] .. starts[b] + counts[b] and take
    the last counts[b] positions of its lengths[b] (int32 [B]). table, capacity and sinks as
    `ragged_attention` has them; counts <= capacity - sinks. Static: max_count >= counts. No two rows
    may write to one page. NotImplementedError for what the backend cannot do.
    """
    wanted = [(x.shape[1], *x.shape[3:]) for x in pages]
    given = [x.shape[1:] for x in new]
    ranks = [4, 4] if pages[0].dtype.itemsize > 1 else [4, 4, 3, 3]
    if [x.ndim for x in pages] != ranks or len({x.shape[:3] for x in pages}) > 1 or wanted != given:
        raise ValueError(
            "ring_write needs k, v [T, K, H] for pages [P, K, page_size, H], and with those of one "
            f"byte also scales [T, K] for [P, K, page_size], got {[x.shape for x in new]} and "
            f"{pages[0].dtype} {[x.shape for x in pages]}"
        )
    return BACKENDS[backend](
        pages,
        new,
        table,
        starts,
        counts,
        lengths,
        capacity=capacity,
        sinks=sinks,
        max_count=max_count,
    )
