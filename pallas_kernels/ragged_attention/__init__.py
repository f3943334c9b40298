"""Attention of new tokens against a paged ring cache: prefill, chunked prefill and decode are one
operation.
"""

import jax

from pallas_kernels.backend import hopper, platform, whole_program
from pallas_kernels.ragged_attention import mosaic_gpu_prefill, mosaic_tpu, reference, xla

BACKENDS = {
    "xla": xla.ragged_attention,
    "mosaic_gpu_prefill": mosaic_gpu_prefill.ragged_attention,
    "mosaic_tpu": mosaic_tpu.ragged_attention,
}
specification = reference.ragged_attention


def page_slots(capacity: int) -> int:
    """How many slots a page for a whole row of `capacity` should have: on TPUs whole tiles."""
    return mosaic_tpu.page_slots(capacity) if platform() == "tpu" else capacity


def ragged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table: jax.Array | None,
    starts: jax.Array,
    counts: jax.Array,
    lengths: jax.Array,
    *,
    capacity: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: int = 0,
    q_far: jax.Array | None = None,
    max_count: int,
    span: int,
    packed: bool,
    backend: str | None = None,
) -> jax.Array:
    """Each row's new queries see the keys of their own sequence that the ring holds, causally.

    q [T, N, H]: the new tokens of all rows; row b's lie at starts[b] .. starts[b] + counts[b]
    (int32 [B]) and take the last counts[b] positions of its lengths[b] (int32 [B], new tokens
    included; their keys are already written). k_pages, v_pages [P, K, page_size, H]; table [B,
    pages] int32 names each row's pages in order, None means row b owns page b (page_size >=
    capacity). Position p lies in slot `ring.slot_of(p, capacity, sinks)`. A query sees positions p
    <= its own with distance < window, and always p < sinks; those first ones meet q_far [T, N, H]
    in place of q if given.
    Static: max_count >= counts; span: slots read per row, >= min(max(lengths), capacity); packed:
    False promises T = B * max_count with starts[b] = b * max_count. Returns [T, N, H]; padding is
    finite. A named `backend` never falls back: it raises NotImplementedError for what it cannot do.
    """
    if q.ndim != 3 or k_pages.shape != v_pages.shape or q.shape[1] % k_pages.shape[1]:
        raise ValueError(
            "ragged_attention needs q [T, N, H] and k_pages, v_pages [P, K, page_size, H] with N a multiple of K, got "
            f"{q.shape=}, {k_pages.shape=}, {v_pages.shape=}"
        )
    if not packed and q.shape[0] != lengths.shape[0] * max_count:
        raise ValueError(
            f"packed=False needs T = B * max_count, got {q.shape=}, {lengths.shape=}, {max_count=}"
        )
    if backend is None and hopper() and max_count > 1:
        reason = mosaic_gpu_prefill.why_not(
            q, k_pages, table, capacity=capacity, window=window, sinks=sinks, q_far=q_far
        )
        backend = "xla" if reason else "mosaic_gpu_prefill"
    if backend is None and platform() == "tpu" and whole_program():
        backend = "xla" if mosaic_tpu.why_not(q, k_pages, table) else "mosaic_tpu"
    return BACKENDS[backend or "xla"](
        q,
        k_pages,
        v_pages,
        table,
        starts,
        counts,
        lengths,
        capacity=capacity,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        q_far=q_far,
        max_count=max_count,
        span=min(span, capacity),
        packed=packed,
    )
