"""Ragged paged ring attention for TPUs (Pallas, Mosaic).

One program walks all rows. A row's new queries are cut into tiles; a tile reads the blocks of slots
that it may see, one after another, while the copy of the next block (also the first one of the next
tile) is under way, and keeps a running softmax in float32. A row with one query, which is what
decoding is, has a body of its own in which a tile is the G query heads of one key-value head, so
decodes in a batch with prefills do not pay for empty queries.

After "Ragged Paged Attention" (arXiv 2604.15464) and FlashAttention-2 (Dao 2023, section 3.1). What
differs: pages are [K, page_size, H] with heads outermost, so that a head's keys are whole tiles and
need no strided load; a ring with sinks is walked in place; a page may be as long as the row.

Heads of fewer than 128 elements would leave lanes of every tile empty. XLA lays such pages out with
the slots along the lanes, [P, K, H, page_size] in memory, and so does this kernel read them: the
exchange of axes costs nothing.

Pages of int8 or fp8 come with a scale for each vector, [P, K, page_size]. They are widened where a
product takes them, on the way from vector memory; scores and weights are multiplied by the scales.
"""

import dataclasses
import math
from typing import Any

import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from pallas_kernels.narrow import TOPS
from pallas_kernels.ragged_attention.mosaic_tpu.launch import launch
from pallas_kernels.ragged_attention.mosaic_tpu.softmax import LANES, Facts
from pallas_kernels.ragged_attention.mosaic_tpu.walk import Walk

TABLE_BYTES = 512 * 1024  # of a core's scalar memory, 1 MB
ONE_BUFFER = 1024 * 1024  # bytes of keys in one block: large enough to stream at full speed


def page_slots(capacity: int) -> int:
    """`capacity` rounded up to whole tiles, whichever axis of a page lies along the lanes."""
    return -(-capacity // LANES) * LANES


def why_not_pages(k_pages, table) -> str | None:
    """Why the TPU kernels cannot take these pages, or None."""
    page_size, H = k_pages.shape[2:]
    if k_pages.dtype not in (jnp.bfloat16, jnp.float32, *TOPS):
        return f"needs pages in bfloat16, float32, int8 or uint8, got {k_pages.dtype}"
    rows = 32 // k_pages.dtype.itemsize  # of a tile
    if H % rows or (H > LANES and H % LANES):
        return f"needs heads of a multiple of {rows} up to {LANES}, or of {LANES}, got {H}"
    rows = rows if H >= LANES and k_pages.dtype not in TOPS else LANES  # scales lie along lanes
    if page_size % rows:
        return (
            f"needs pages of a multiple of {rows} slots for {k_pages.dtype}[{H}], got {page_size}"
        )
    if table is not None and table.size * 4 > TABLE_BYTES:
        return f"needs a page table of up to {TABLE_BYTES} bytes (take larger pages), got {table.shape}"
    return None


def why_not(q, k_pages, table) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if q.dtype != k_pages.dtype and (k_pages.dtype not in TOPS or q.dtype.itemsize < 2):
        return f"needs q and pages of one dtype, got {q.dtype} and {k_pages.dtype}"
    return why_not_pages(k_pages, table)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """queries: of one row in a tile, a power of two; slots: of a block of keys."""

    queries: int
    slots: int

    @classmethod
    def of(cls, q, k_pages, max_count: int) -> "Blocks":
        """As many slots as make a copy worth its latency; as many queries as keep a tile's state,
        N * queries rows, within a few megabytes.
        """
        N, H = q.shape[1:]
        K, page_size = k_pages.shape[1:3]
        queries = 1
        if max_count > 1:
            fit = max(8, 4096 // N)
            queries = min(128, 1 << (fit.bit_length() - 1), pl.next_power_of_2(max(8, max_count)))
        slots = ONE_BUFFER // (K * -(-H // LANES) * LANES * k_pages.dtype.itemsize)
        slots = max(1, min(1024, slots) // LANES) * LANES
        return cls(queries, min(slots, -(-page_size // LANES) * LANES))


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
    blocks: Blocks | None = None,
    interpret: Any = False,
):
    """Shapes as the package's function. NotImplementedError for what the kernel cannot take.

    Only slots that hold what a query sees are read, so `span` is not looked at. Places of T that
    belong to no row return what q holds there.
    """
    T, N, H = q.shape
    K, page_size = k_pages.shape[1:3]
    if reason := why_not(q, k_pages, table):
        raise NotImplementedError(f"the Mosaic TPU kernel {reason}; use backend='xla'")
    blocks = blocks or Blocks.of(q, k_pages, max_count)
    unit = math.gcd(page_size, blocks.slots, LANES)
    facts = Facts(
        walk=Walk(capacity, blocks.slots, unit, window, sinks),
        page_size=page_size,
        pages=None if table is None else table.shape[1],
        queries=blocks.queries,
        single=packed or max_count == 1,
        turned=H < LANES,
        narrow=k_pages.dtype in TOPS,
        scale=scale,
        softcap=softcap,
        far=bool(sinks) and q_far is not None,
        precision=lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
    )
    far = q_far if facts.far else None
    pages = (k_pages, v_pages, *((k_scale, v_scale) if facts.narrow else ()))
    places = (table, starts, counts, lengths)
    return launch(q, far, pages, *places, facts=facts, interpret=interpret)
