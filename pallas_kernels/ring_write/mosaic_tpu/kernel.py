"""The kernel: the walk over rows and their groups of slots, and what is on its way meanwhile."""

import dataclasses
import functools
import types

import jax.experimental.pallas as pl
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ragged_attention.mosaic_tpu.kernel import by_powers
from pallas_kernels.ragged_attention.mosaic_tpu.softmax import LANES


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a kernel is compiled for. group: slots that are read and written together. flights: how
    many groups are on their way at a time.
    """

    group: int
    flights: int
    page_size: int
    pages: int | None
    capacity: int
    sinks: int
    turned: bool
    narrow: bool

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is kept of a token, vectors and then scales."""
        return ("k", "v", "k_scale", "v_scale") if self.narrow else ("k", "v")


def kernel(*refs, facts: Facts, names):
    r = types.SimpleNamespace(**dict(zip(names, refs, strict=True)))
    B = r.counts.shape[0]

    def settle(row):
        """The first row from `row` on that has tokens."""
        return lax.while_loop(
            lambda row: (row < B) & (r.counts[jnp.minimum(row, B - 1)] == 0),
            lambda row: row + 1,
            row,
        )

    def following(row, n):
        more = n + 1 < _Group(r, facts, row, n).groups
        row = jnp.where(more, row, settle(row + jnp.where(more, 0, 1)))
        return row, jnp.where(more, n + 1, 0)

    def fetch(i, row, n):
        pl.when(row < B)(lambda: _Group(r, facts, row, n).fetch(lax.rem(i, facts.flights), "start"))
        return following(row, n)

    def step(state):
        i, row, n, ahead_row, ahead_n = state
        ahead = fetch(i + facts.flights - 1, ahead_row, ahead_n)
        flight = lax.rem(i, facts.flights)
        here = _Group(r, facts, row, n)
        here.fetch(flight, "wait")
        pl.when(i >= facts.flights)(
            lambda: here.store(flight, "wait")
        )  # the group that flew before
        here.merge(flight)
        here.store(flight, "start")
        return i + 1, *following(row, n), *ahead

    zero = jnp.int32(0)
    start = (settle(zero), zero)
    ahead = lax.fori_loop(0, facts.flights - 1, lambda i, state: fetch(i, *state), start)
    state = lax.while_loop(lambda state: state[1] < B, step, (zero, *start, *ahead))
    last = _Group(r, facts, zero, zero)
    for flight in range(facts.flights):
        pl.when(flight < state[0])(functools.partial(last.store, flight, "wait"))


class _Group:
    """The n-th group of slots that the new tokens of a row go to."""

    def __init__(self, r, facts: Facts, row, n):
        self.r, self.facts = r, facts
        self.row = row = jnp.minimum(row, r.counts.shape[0] - 1)
        count, first = r.counts[row], r.lengths[row] - r.counts[row]
        ring = facts.sinks + lax.rem(
            jnp.maximum(first - facts.sinks, 0), facts.capacity - facts.sinks
        )
        slot = jnp.where(first < facts.sinks, first, ring) if facts.sinks else ring
        end = jnp.minimum(slot + count, facts.capacity)
        around = count - (end - slot)  # tokens that begin the ring's next lap
        token = r.starts[row]
        # slots from .. to take the tokens from `token` on
        self.runs = (slot, end, token), (facts.sinks, facts.sinks + around, token + end - slot)
        blocks, begin = -(-facts.capacity // facts.group), slot // facts.group
        straight = (end - 1) // facts.group - begin + 1
        lap = blocks - begin + (facts.sinks + around - 1) // facts.group + 1
        self.groups = jnp.where(around == 0, straight, jnp.minimum(lap, blocks))
        block = begin + n
        self.begin = jnp.where(block >= blocks, block - blocks, block) * facts.group

    def fetch(self, flight, action):
        """What the group holds, and its new tokens."""
        r, facts = self.r, self.facts
        for kind, source, target in self._each("in", "old"):
            source = source.at[self._place(kind)]
            copy = pltpu.make_async_copy(source, target.at[flight], r.old_ready.at[flight])
            getattr(copy, action)()
        for slot, end, token in self.runs:
            low = jnp.maximum(slot, self.begin)
            high = jnp.minimum(end, self.begin + facts.group)
            into, token = low - self.begin, token + low - slot

            def piece(begin, size, into=into, token=token):
                for _, source, target in self._each("tokens", "new"):
                    source = source.at[pl.ds(token + begin, size)]
                    target = target.at[flight, pl.ds(into + begin, size)]
                    copy = pltpu.make_async_copy(source, target, r.new_ready.at[flight])
                    getattr(copy, action)()

            by_powers(facts.group, jnp.maximum(high - low, 0), piece)

    def store(self, flight, action):
        r = self.r
        for kind, source, target in self._each("out", "into"):
            target = target.at[self._place(kind)]
            copy = pltpu.make_async_copy(source.at[flight], target, r.out_ready.at[flight])
            getattr(copy, action)()

    def _each(self, *stems):
        """(kind, its array of every stem) of all kinds."""
        return [
            (kind, *(getattr(self.r, f"{s}_{kind}") for s in stems)) for kind in self.facts.kinds
        ]

    def _place(self, kind):
        """Where the group lies in the pages; of scales, the whole tile around it."""
        facts, page, offset = self.facts, self.row, self.begin
        if facts.pages is not None:
            page = self.r.table[self.row * facts.pages + self.begin // facts.page_size]
            offset = lax.rem(self.begin, facts.page_size)
        if kind not in ("k", "v"):
            offset = pl.multiple_of(offset // LANES * LANES, LANES)
            return page, slice(None), pl.ds(offset, LANES)
        across = (slice(None),) * (2 if facts.turned else 1)
        return (page, *across, pl.ds(pl.multiple_of(offset, facts.group), facts.group))

    def merge(self, flight):
        """New tokens over old ones, head by head."""
        r, facts = self.r, self.facts
        group, K, H = r.new_k.shape[1:]
        stride = r.wide.shape[1] // group
        shape = (1, group) if facts.turned else (group, 1)
        fresh = self._fresh(self.begin, shape)
        sources = (r.new_k, r.old_k, r.out_k), (r.new_v, r.old_v, r.out_v)
        for new, old, out in sources:
            for part in range(r.wide.shape[0]):
                lanes = pl.ds(part * LANES, min(H, LANES))
                for i in range(group):  # float32: there single rows can be picked
                    token = new[flight, i, :, lanes].astype(jnp.float32)
                    r.wide[part, pl.ds(i * stride, K), :] = token
                for k in range(K):
                    found = r.wide[part, pl.ds(k, group, stride=stride), :]
                    place = (flight, k) if facts.turned else (flight, k, slice(None), lanes)
                    found = found.T if facts.turned else found
                    before = old[place].astype(jnp.float32)
                    out[place] = jnp.where(fresh, found, before).astype(out.dtype)
        for _, new, old, out in self._each("new", "old", "out")[2:]:
            self._merge_scales(flight, new, old, out)

    def _fresh(self, begin, shape):
        """Which of the slots from `begin` on, along the longer axis of `shape`, take new tokens."""
        slots = begin + lax.broadcasted_iota(jnp.int32, shape, int(shape[1] > 1))
        fresh = jnp.zeros(shape, bool)
        for slot, end, _ in self.runs:
            fresh |= (slots >= slot) & (slots < end)
        return fresh

    def _merge_scales(self, flight, new, old, out):
        """The same for scales, whose slots lie along the lanes."""
        tall, K = self.r.tall, old.shape[1]
        tile = self.begin // LANES * LANES
        for i in range(self.facts.group):
            tall[pl.ds(self.begin - tile + i, 1), pl.ds(0, K)] = new[flight, i]
        fresh = self._fresh(tile, (1, LANES))
        out[flight] = jnp.where(fresh, tall[...].T[:K], old[flight])
