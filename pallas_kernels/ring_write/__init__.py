"""Putting the keys and values of new tokens into their slots of a paged ring cache, in place."""

import jax

from pallas_kernels.ring_write import mosaic_tpu, reference

BACKENDS = {"mosaic_tpu": mosaic_tpu.ring_write}
specification = reference.ring_write


def ring_write(
    k_pages: jax.Array,
    v_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array | None,
    starts: jax.Array,
    counts: jax.Array,
    lengths: jax.Array,
    *,
    capacity: int,
    sinks: int = 0,
    max_count: int,
    backend: str = "mosaic_tpu",
) -> tuple[jax.Array, jax.Array]:
    """The pages with row b's counts[b] new tokens in the slots of their positions.

    k_pages, v_pages [P, K, page_size, H]: updated in place where the caller gives them up. k, v
    [T, K, H]: row b's new tokens lie at starts[b] .. starts[b] + counts[b] and take the last
    counts[b] positions of its lengths[b] (int32 [B]). table, capacity and sinks as
    `ragged_attention` has them; counts <= capacity - sinks. Static: max_count >= counts. No two rows
    may write to one page. NotImplementedError for what the backend cannot do.
    """
    if k_pages.shape != v_pages.shape or k.shape != v.shape or k.shape[1:] != k_pages.shape[1::2]:
        raise ValueError(
            "ring_write needs k, v [T, K, H] and k_pages, v_pages [P, K, page_size, H], got "
            f"{k.shape=}, {v.shape=}, {k_pages.shape=}, {v_pages.shape=}"
        )
    return BACKENDS[backend](
        k_pages,
        v_pages,
        k,
        v,
        table,
        starts,
        counts,
        lengths,
        capacity=capacity,
        sinks=sinks,
        max_count=max_count,
    )
