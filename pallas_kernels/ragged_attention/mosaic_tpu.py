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
"""

import dataclasses
import functools
import math
import types
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from pallas_kernels.backend import platform
from pallas_kernels.ragged_attention.tpu_softmax import LANES, Facts, Softmax
from pallas_kernels.ragged_attention.tpu_walk import Walk

TABLE_BYTES = 512 * 1024  # of a core's scalar memory, 1 MB
ONE_BUFFER = 1024 * 1024  # bytes of keys in one block: large enough to stream at full speed


def in_hbm(pages):
    """Keeps the compiler from copying pages into a core's own memory when they happen to fit (there
    is no compiler to keep where nothing is traced).
    """
    if platform() == "tpu" and isinstance(pages, Tracer):
        return pltpu.with_memory_space_constraint(pages, pltpu.HBM)
    return pages


def page_slots(capacity: int) -> int:
    """`capacity` rounded up to whole tiles, whichever axis of a page lies along the lanes."""
    return -(-capacity // LANES) * LANES


def why_not_pages(k_pages, table) -> str | None:
    """Why the TPU kernels cannot take these pages, or None."""
    page_size, H = k_pages.shape[2:]
    if k_pages.dtype not in (jnp.bfloat16, jnp.float32):
        return f"needs pages in bfloat16 or float32, got {k_pages.dtype}"
    rows = 32 // k_pages.dtype.itemsize  # of a tile
    if H % rows or (H > LANES and H % LANES):
        return f"needs heads of a multiple of {rows} up to {LANES}, or of {LANES}, got {H}"
    rows = rows if H >= LANES else LANES
    if page_size % rows:
        return (
            f"needs pages of a multiple of {rows} slots for {k_pages.dtype}[{H}], got {page_size}"
        )
    if table is not None and table.size * 4 > TABLE_BYTES:
        return f"needs a page table of up to {TABLE_BYTES} bytes (take larger pages), got {table.shape}"
    return None


def why_not(q, k_pages, table) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if q.dtype != k_pages.dtype:
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
        return cls(queries, min(max(LANES, min(1024, slots)), -(-page_size // LANES) * LANES))


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
        scale=scale,
        softcap=softcap,
        far=bool(sinks) and q_far is not None,
        precision=lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
    )
    scalars = [starts, counts, lengths] + ([] if table is None else [table.reshape(-1)])
    if facts.turned:
        k_pages, v_pages = jnp.swapaxes(k_pages, 2, 3), jnp.swapaxes(v_pages, 2, 3)
    inputs = [q, *([q_far] if facts.far else []), in_hbm(k_pages), in_hbm(v_pages)]
    anywhere = pl.BlockSpec(memory_space=pltpu.HBM)
    scratch = _scratch(q, k_pages, facts)
    held = sum(math.prod(s.shape) * s.dtype.itemsize for s in scratch.values() if s.shape[2:])
    call = pl.pallas_call(
        functools.partial(_kernel, facts=facts, names=tuple(scratch), tabled=table is not None),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(1,),
            in_specs=[anywhere] * len(inputs),
            out_specs=anywhere,
            scratch_shapes=list(scratch.values()),
        ),
        input_output_aliases={
            len(scalars): 0
        },  # a tile's queries are read before they are replaced
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=held + 24 * 1024 * 1024),
        interpret=interpret,
        name="ragged_attention",
    )
    return call(*(x.astype(jnp.int32) for x in scalars), *inputs)


def _scratch(q, k_pages, facts: Facts) -> dict:
    """The kernel's memory by name. Pairs are double buffers."""
    N, H = q.shape[1:]
    K, G, Q = k_pages.shape[1], N // k_pages.shape[1], facts.queries
    rows = Q * G if Q > 1 else -(-G // 16) * 16
    padded = -(-N // 8) * 8
    tile = pltpu.VMEM((2, Q, N, H), q.dtype)
    places = (H, facts.walk.block) if facts.turned else (facts.walk.block, H)
    block = pltpu.VMEM((2, K, *places), k_pages.dtype)
    heads, column = pltpu.VMEM((K, rows, H), q.dtype), pltpu.VMEM((K, rows, LANES), jnp.float32)
    scratch = dict(q=tile, out=tile, k=block, v=block, heads=heads)
    if facts.far:
        scratch |= dict(far=tile, far_heads=heads)
    scratch |= dict(
        wide=pltpu.VMEM((-(-H // LANES), Q * padded, min(H, LANES)), jnp.float32),
        largest=column,
        total=column,
        sum=pltpu.VMEM((K, rows, H), jnp.float32),
        q_ready=pltpu.SemaphoreType.DMA((2,)),
        kv_ready=pltpu.SemaphoreType.DMA((2,)),
        out_ready=pltpu.SemaphoreType.DMA((2,)),
        pending=pltpu.SMEM((2,), jnp.int32),
    )
    return scratch


def _kernel(*refs, facts: Facts, names, tabled):
    arguments = ["starts", "counts", "lengths", *(["table"] if tabled else []), "q_hbm"]
    arguments += ["far_hbm"] if facts.far else []
    names = (*arguments, "k_hbm", "v_hbm", "out_hbm", *names)
    r = types.SimpleNamespace(**dict(zip(names, refs, strict=True)))
    B = r.counts.shape[0]
    r.pending[0] = r.pending[1] = 0

    def settle(row):
        """The first row from `row` on that has queries."""
        return lax.while_loop(
            lambda row: (row < B) & (r.counts[jnp.minimum(row, B - 1)] == 0),
            lambda row: row + 1,
            row,
        )

    def step(state):
        row, first, buffer, kv_buffer = state
        more = first + facts.queries < r.counts[row]
        next_row = jnp.where(more, row, settle(row + jnp.where(more, 0, 1)))
        next_first = jnp.where(more, first + facts.queries, 0)
        here, there = _Tile(r, facts, row, first), _Tile(r, facts, next_row, next_first)

        @pl.when(next_row < B)
        def _():
            there.copy_queries(1 - buffer, "start")

        here.copy_queries(buffer, "wait")
        kv_buffer = here.attend(buffer, kv_buffer, there, next_row < B)
        return next_row, next_first, 1 - buffer, kv_buffer

    row = settle(jnp.int32(0))

    @pl.when(row < B)
    def _():
        tile = _Tile(r, facts, row, jnp.int32(0))
        tile.copy_queries(0, "start")
        tile.copy_block(0, 0, "start")

    zero = jnp.int32(0)
    lax.while_loop(lambda state: state[0] < B, step, (row, zero, zero, zero))
    for buffer in range(2):
        _copy_out(r, facts, buffer, 0, r.pending[buffer], "wait")


def by_powers(most, count, copy):
    """copy(begin, size) for pieces that make up `count` <= `most`, a power of two: sizes are
    static.
    """
    size = most
    while size:
        begin = count // (2 * size) * (2 * size)
        pl.when(count & size != 0)(functools.partial(copy, begin, size))
        size //= 2


def _copy_out(r, facts, buffer, token, count, action):
    """A tile's outputs to their places in T: start the copies, or wait for them."""

    def piece(begin, size):
        target = r.out_hbm.at[pl.ds(token + begin, size)]
        source = r.out.at[buffer, pl.ds(begin, size)]
        getattr(pltpu.make_async_copy(source, target, r.out_ready.at[buffer]), action)()

    by_powers(facts.queries, count, piece)


class _Tile:
    """Up to `queries` new queries of one row, from its `first` on."""

    def __init__(self, r, facts: Facts, row, first):
        self.r, self.facts = r, facts
        self.row = row = jnp.minimum(row, r.counts.shape[0] - 1)
        self.count = jnp.minimum(r.counts[row] - first, facts.queries)
        self.length = r.lengths[row]
        self.oldest = self.length - r.counts[row] + first
        self.newest = self.oldest + self.count - 1
        self.token = r.starts[row] + first
        self.slot, self.slots = facts.walk.needed(self.oldest, self.newest, self.length)

    def copy_queries(self, buffer, action):
        r = self.r
        pairs = [(r.q_hbm, r.q)] + ([(r.far_hbm, r.far)] if self.facts.far else [])

        def piece(begin, size):
            for source, target in pairs:
                source = source.at[pl.ds(self.token + begin, size)]
                target = target.at[buffer, pl.ds(begin, size)]
                getattr(pltpu.make_async_copy(source, target, r.q_ready.at[buffer]), action)()

        by_powers(self.facts.queries, self.count, piece)

    def copy_block(self, n, buffer, action):
        """The units of the n-th block that hold a needed slot."""
        r, facts, walk = self.r, self.facts, self.facts.walk
        begin = walk.nth(self.slot, n) * walk.block

        def unit(at):
            slot = begin + at
            page, offset = self.row, slot
            if facts.pages is not None:
                page = r.table[self.row * facts.pages + slot // facts.page_size]
                offset = lax.rem(slot, facts.page_size)
            places = pl.ds(pl.multiple_of(offset, walk.unit), walk.unit)
            across = (slice(None),) * (2 if facts.turned else 1)
            for source, target in ((r.k_hbm, r.k), (r.v_hbm, r.v)):
                source = source.at[(page, *across, places)]
                target = target.at[(buffer, *across, pl.ds(at, walk.unit))]
                getattr(pltpu.make_async_copy(source, target, r.kv_ready.at[buffer]), action)()

        for at in range(0, walk.block, walk.unit):
            wanted = walk.touches(begin + at, self.slot, self.slots)
            pl.when(wanted)(functools.partial(unit, at))

    def attend(self, buffer, kv_buffer, following, follows):
        """Walk the blocks, then send the outputs on their way. Returns the next block's buffer."""
        r, facts, walk = self.r, self.facts, self.facts.walk
        count = walk.count(self.slot, self.slots)
        sizes = sorted({1, facts.queries}) if facts.single else [facts.queries]
        each = [(Softmax(r, facts, size), size) for size in sizes]

        def chosen(act):
            """act(softmax) of the one that fits the tile."""
            for softmax, size in each:
                fits = (self.count == 1) == (size == 1) if len(each) > 1 else True
                pl.when(fits)(functools.partial(act, softmax))

        chosen(lambda softmax: softmax.begin(buffer))

        def step(n, kv_buffer):
            @pl.when(n + 1 < count)
            def _():
                self.copy_block(n + 1, 1 - kv_buffer, "start")

            @pl.when((n + 1 == count) & follows)
            def _():
                following.copy_block(0, 1 - kv_buffer, "start")

            self.copy_block(n, kv_buffer, "wait")
            begin = walk.nth(self.slot, n) * walk.block
            clear = walk.all_seen(begin, self.oldest, self.newest, self.length)

            def add(softmax):
                for masked, when in ((False, clear), (True, jnp.logical_not(clear))):
                    pl.when(when)(functools.partial(softmax.block, kv_buffer, begin, self, masked))

            chosen(add)
            return 1 - kv_buffer

        kv_buffer = lax.fori_loop(0, count, step, kv_buffer)
        _copy_out(r, facts, buffer, 0, r.pending[buffer], "wait")  # of two tiles ago
        chosen(lambda softmax: softmax.end(buffer))
        _copy_out(r, facts, buffer, self.token, self.count, "start")
        r.pending[buffer] = self.count
        return kv_buffer
