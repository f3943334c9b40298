"""Attention of new tokens against a paged ring cache: prefill, chunked prefill and decode are one
operation.
"""

from typing import Any

import jax

from pallas_kernels.backend import hopper, platform, tpu, whole_program
from pallas_kernels.narrow import TOPS
from pallas_kernels.ragged_attention import (
    mosaic_gpu,
    mosaic_gpu_prefill,
    mosaic_tpu,
    reference,
    xla,
)

BACKENDS = {
    "xla": xla.ragged_attention,
    "mosaic_gpu": mosaic_gpu.ragged_attention,
    "mosaic_gpu_prefill": mosaic_gpu_prefill.ragged_attention,
    "mosaic_tpu": mosaic_tpu.ragged_attention,
}
SCALED = ("xla", "mosaic_gpu", "mosaic_tpu")  # backends that take narrow pages with scales
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
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    backend: str | None = None,
) -> jax.Array:
    """Each row's new queries see the keys of their own sequence that the ring holds, causally.

    q [T, N, H]: the new tokens of all rows; row b's lie at starts[b] .. starts[b] + counts[b]
    (int32 [B]) and take the last counts[b] positions of its lengths[b] (int32 [B], new tokens
    included; their keys are already written). k_pages, v_pages [P, K, page_size, H]; table [B,
    pages] int32 names each row's pages in order, None means row b owns page b (page_size >=
    capacity). Position p lies in slot `ring.slot_of(p, capacity, sinks)`. A query sees positions p
    <= its own with distance < window, and always p < sinks; those first ones meet q_far [T, N, H]
    in place of q if given. k_scale, v_scale [P, K, page_size] float32: what the vectors of narrow
    pages (int8, or fp8 as uint8: `pallas_kernels.narrow`) are to be multiplied by.
    Static: max_count >= counts; span: slots read per row, >= min(max(lengths), capacity); packed:
    False promises T = B * max_count with starts[b] = b * max_count. Returns [T, N, H]; padding is
    finite. A named `backend` never falls back: it raises NotImplementedError for what it cannot do.
    """
    if q.ndim != 3 or k_pages.shape != v_pages.shape or q.shape[1] % k_pages.shape[1]:
        raise ValueError(
            "ragged_attention needs q [T, N, H] and k_pages, v_pages [P, K, page_size, H] with N a multiple of K, got "
            f"{q.shape=}, {k_pages.shape=}, {v_pages.shape=}"
        )
    narrow = k_pages.dtype in TOPS
    if any((x is not None) != narrow for x in (k_scale, v_scale)):
        raise ValueError(
            "ragged_attention needs k_scale and v_scale with pages of int8 or uint8 and no others, got "
            f"{k_pages.dtype} and scales {[None if x is None else x.shape for x in (k_scale, v_scale)]}"
        )
    if not packed and q.shape[0] != lengths.shape[0] * max_count:
        raise ValueError(
            f"packed=False needs T = B * max_count, got {q.shape=}, {lengths.shape=}, {max_count=}"
        )
    if backend is None and hopper():
        rules = dict(capacity=capacity, window=window, sinks=sinks, q_far=q_far)
        reason = mosaic_gpu.why_not(q, k_pages, table, max_count=max_count, **rules)
        backend = "xla" if reason else "mosaic_gpu"
    if backend is None and tpu() and whole_program():
        backend = "xla" if mosaic_tpu.why_not(q, k_pages, table) else "mosaic_tpu"
    backend = backend or "xla"
    scales = dict(k_scale=k_scale, v_scale=v_scale) if backend in SCALED else {}
    if narrow and not scales:
        raise NotImplementedError(
            f"backend {backend} needs pages without scales; use backend='xla'"
        )
    return BACKENDS[backend](
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
        **scales,
    )


def writes_inside(
    q: jax.Array, k_pages: jax.Array, table: jax.Array | None, *, max_count: int
) -> bool:
    """Whether `attend_and_write` by default writes in the attention kernel itself, and so is worth
    asking for: on Hopper, for what the kernel takes, where the tuned data says that it is faster.
    """
    return hopper() and mosaic_gpu.writes_inside(q, k_pages, table, max_count=max_count)


def attend_and_write(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    table: jax.Array | None,
    starts: jax.Array,
    counts: jax.Array,
    lengths: jax.Array,
    *,
    capacity: int,
    sinks: int = 0,
    max_count: int,
    backend: str | None = None,
    **rules: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`ragged_attention` over pages that do not hold the new tokens yet: (answers, k_pages, v_pages
    with them), the pages updated in place where the caller gives them up.

    k, v [T, K, H]: the new tokens' keys and values; the rest as `ragged_attention`. The backend
    "mosaic_gpu" writes rows of one new token in the attention kernel itself, and is the default
    where `writes_inside`; otherwise this is a write followed by attention.
    """
    rules |= dict(capacity=capacity, sinks=sinks, max_count=max_count)
    given = table, starts, counts, lengths
    if backend is None and writes_inside(q, k_pages, table, max_count=max_count):
        backend = "mosaic_gpu"
    if backend == "mosaic_gpu":
        return mosaic_gpu.attend_and_write(q, k, v, k_pages, v_pages, *given, **rules)
    where = dict(capacity=capacity, sinks=sinks, max_count=max_count)
    k_pages, v_pages = xla.written(k, v, k_pages, v_pages, *given, **where)
    out = ragged_attention(q, k_pages, v_pages, *given, backend=backend, **rules)
    return out, k_pages, v_pages
