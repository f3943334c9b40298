"""One pair of a row and a kv head: online softmax over its blocks of slots, and which it sees."""

import dataclasses
import functools
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import (
    LOG2_E,
    NEVER,
    TILE,
    WGMMA,
    Form,
    spread,
)
from pallas_kernels.ragged_attention.mosaic_gpu_decode.ring import Ring
from pallas_kernels.ragged_attention.mosaic_gpu_decode.rows import load, load_rows, store_rows


def nothing(form: Form):
    """acc [TILE, H], the rows' largest score and sum of weights, before any block."""
    zero = functools.partial(jnp.full, dtype=jnp.float32)
    rows = WGMMA.reduce(1)
    return (
        plgpu.layout_cast(zero((TILE, form.H), 0.0), WGMMA),
        plgpu.layout_cast(zero((TILE,), NEVER), rows),
        plgpu.layout_cast(zero((TILE,), 0.0), rows),
    )


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row's query heads of one kv head. q, far [G, H], new (key [H], value [H]): in memory, or None."""

    form: Form
    ring: Ring
    row: Any
    head: Any
    shape: tuple[Any, ...]
    q: Any
    far: Any
    new: Any

    @classmethod
    def of(cls, form: Form, ring: Ring, q, far, row, head, shape) -> "Pair":
        """q [B, N, H], followed in axis 1 by the K new keys and K new values if form.new: what comes
        before the kernel (rope) is then one fusion of XLA's in place of two.
        """
        mine = pl.ds(head * form.G, form.G)
        new = (q.at[row, form.N + head], q.at[row, form.N + form.K + head]) if form.new else None
        far = None if far is None else far.at[row, mine]
        return cls(form, ring, row, head, shape, q.at[row, mine], far, new)

    def see(self, query, place, first, acc, m, weight):
        """The block of slots from `first` on, in stage `place`: online softmax -> acc, m, weight."""
        form, ring = self.form, self.ring
        keys, values = (stages.at[ring.wg, place] for stages in ring.stages)
        k_full, v_full = (full.at[ring.wg, place] for full in ring.full)
        edge = is_edge(form, first, self.shape)
        plgpu.barrier_wait(k_full)
        keys, scale = self._widened(0, keys, place)
        s = self._scores(query, keys, scale)
        s = lax.cond(edge, lambda s: self._masked(s, keys, scale, first), lambda s: s, s)
        new = jnp.maximum(m, s.max(axis=1))
        kept = jnp.exp2(m - new)
        p = jnp.exp2(s - spread(new, s.shape))
        weight = weight * kept + p.sum(axis=1)
        plgpu.barrier_wait(v_full)
        if form.narrow:  # no value of one byte is infinite or no number, but a scale may be
            values, scale = self._widened(1, values, place)
            p = jnp.where(p == 0.0, jnp.zeros_like(p), p * over_columns(scale, p.shape))
        else:
            pl.when(edge)(lambda: self._silence(values, first))
        p16 = p.astype(query.dtype)
        return acc * spread(kept, acc.shape) + product(form, p16, values), new, weight

    def begin(self, newest):
        """The query, and what its softmax starts from; where `newest`, with the new position, if the
        row has one.
        """
        query, start = self._rows(self.q), nothing(self.form)
        if self.new is None:
            return query, start
        has_new = newest & (self.shape[split.LENGTH] > 0)
        return query, lax.cond(has_new, lambda: self._newest(query), lambda: start)

    def _newest(self, query):
        """The new key and value: into their page, and as what the softmax starts from."""
        form, columns = self.form, WGMMA.reduce(0)
        slot = newest(form, self.shape)
        page, offset = self.ring.locate(self.row, slot)
        key, value = (load(x, layout=columns) for x in self.new)
        for pages, x in zip(self.ring.pages, (key, value), strict=True):
            store_rows(pages.at[page, self.head, offset], x, columns, interpret=form.interpret)
        if self.far is not None:
            query = lax.cond(slot < form.sinks, lambda: self._rows(self.far), lambda: query)

        def over_rows(x):
            return lax.broadcast_in_dim(x.astype(jnp.float32), (TILE, form.H), [1])

        score = self._units((query.astype(jnp.float32) * over_rows(key)).sum(axis=1))
        one = plgpu.layout_cast(jnp.full((TILE,), 1.0, jnp.float32), WGMMA.reduce(1))
        return over_rows(value), score, one

    def _rows(self, heads):
        return load_rows(heads, (TILE, self.form.H), WGMMA, interpret=self.form.interpret)

    def _widened(self, which, stage, place):
        """Keys (which 0) or values (1) of a stage as the tensor cores take them, and their scales."""
        ring = self.ring
        if not self.form.narrow:
            return stage, None
        tile = ring.wide[which].at[ring.wg]
        bytes_in_words = plgpu.Layout.WGMMA_UPCAST_2X
        tile[...] = plgpu.layout_cast(stage[...], bytes_in_words).astype(tile.dtype)
        plgpu.commit_smem()
        return tile, load(ring.scale_stages[which].at[ring.wg, place], layout=WGMMA.reduce(0))

    def _scores(self, query, keys, scale):
        s = product(self.form, query, keys, turned=True)
        return self._units(s if scale is None else s * over_columns(scale, s.shape))

    def _units(self, s):
        """Products of queries and keys as scores, in units of log2."""
        form = self.form
        if form.softcap is None:
            return s * (form.scale * LOG2_E)
        return jnp.tanh(s * (form.scale / form.softcap)) * (form.softcap * LOG2_E)

    def _masked(self, s, keys, scale, first):
        form = self.form
        slot = plgpu.broadcasted_iota(jnp.int32, s.shape, 1, layout=WGMMA) + first
        if self.far is not None:
            far = self._scores(self._rows(self.far), keys, scale)
            s = jnp.where(slot < form.sinks, far, s)
        return jnp.where(seen_in(form, slot, self.shape), s, -jnp.inf)

    def _silence(self, values, first):
        """A slot nobody sees may hold anything, NaN too, which a weight of zero would not silence."""
        for part in range(0, self.form.blocks.slots, TILE):
            tile = values.at[pl.ds(part, TILE)]
            value = plgpu.layout_cast(tile[...], WGMMA)
            slot = plgpu.broadcasted_iota(jnp.int32, value.shape, 0, layout=WGMMA)
            seen = seen_in(self.form, slot + (first + part), self.shape)
            tile[...] = jnp.where(seen, value, jnp.zeros_like(value))
        plgpu.commit_smem()


def over_columns(x, shape):
    """A number a column, over the columns."""
    return lax.broadcast_in_dim(x, shape, [1])


def newest(form: Form, shape):
    """The slot of the row's newest position (-1: the row has none)."""
    last = shape[split.LAST]
    return jnp.where(last >= 0, last + form.sinks, shape[split.LENGTH] - 1)


def product(form: Form, left, right, *, turned: bool = False):
    """left [TILE, n] in registers times right, in shared memory: [n, m], or [m, n] if turned."""
    if form.interpret:  # which has no products with registers
        value = right[...].T if turned else right[...]
        return jnp.dot(left, value, preferred_element_type=jnp.float32)

    def multiply(acc):
        plgpu.wgmma(acc, left, right.transpose((1, 0)) if turned else right)
        return acc[...]

    columns = right.shape[0] if turned else right.shape[1]
    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((TILE, columns), jnp.float32))


def is_edge(form: Form, first, shape):
    """Whether the row does not see every slot of the block from `first` on."""
    size, ring = form.blocks.slots, form.capacity - form.sinks
    last, seen = shape[split.LAST], shape[split.SEEN]
    at = first - form.sinks
    back = jnp.where(last >= at, last - at, last - at + ring)  # the farthest unless the ring turns
    turns = (at <= last) & (last < at + size - 1) & (seen < ring)
    outside = (first + size > form.capacity) | (first < form.sinks)
    edge = outside | turns | (back >= seen)
    if form.new:
        slot = newest(form, shape)
        edge |= (first <= slot) & (slot < first + size)
    return edge


def seen_in(form: Form, slot, shape):
    """Which slots (any array) the row's query sees in the pages."""
    at = slot - form.sinks
    back = shape[split.LAST] - at
    back = jnp.where(back < 0, back + (form.capacity - form.sinks), back)
    seen = (back < shape[split.SEEN]) & (slot < form.capacity)
    if form.sinks:
        seen = jnp.where(at < 0, slot < shape[split.LENGTH], seen)
    if form.new:
        seen &= slot != newest(form, shape)
    return seen
