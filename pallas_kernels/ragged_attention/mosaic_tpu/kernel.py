"""The kernel: the walk over rows and tiles, and the copies that it keeps on their way."""

import functools
import types

import jax.experimental.pallas as pl
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ragged_attention.mosaic_tpu.softmax import Facts, Softmax


def kernel(*refs, facts: Facts, names, tabled):
    arguments = ["starts", "counts", "lengths", *(["table"] if tabled else []), "q_hbm"]
    arguments += ["far_hbm"] if facts.far else []
    arguments += ["k_hbm", "v_hbm", *(["k_scale_hbm", "v_scale_hbm"] if facts.narrow else [])]
    names = (*arguments, "out_hbm", *names)
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
        here, there = Tile(r, facts, row, first), Tile(r, facts, next_row, next_first)

        @pl.when(next_row < B)
        def _():
            there.copy_queries(1 - buffer, "start")

        here.copy_queries(buffer, "wait")
        kv_buffer = here.attend(buffer, kv_buffer, there, next_row < B)
        return next_row, next_first, 1 - buffer, kv_buffer

    row = settle(jnp.int32(0))

    @pl.when(row < B)
    def _():
        tile = Tile(r, facts, row, jnp.int32(0))
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


class Tile:
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
            heads = (slice(None),)
            across = heads * (2 if facts.turned else 1)
            pairs = [(r.k_hbm, r.k, across), (r.v_hbm, r.v, across)]
            if facts.narrow:
                pairs += [(r.k_scale_hbm, r.k_scale, heads), (r.v_scale_hbm, r.v_scale, heads)]
            for source, target, across in pairs:
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
