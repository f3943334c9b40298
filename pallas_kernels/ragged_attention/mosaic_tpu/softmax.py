"""The running softmax of a tile of queries on a TPU core, over blocks of keys already in its memory.

The tile's state, for each key-value head and its rows (g, query): the largest score so far, the
total of the weights and the weighted sum of the values, all float32, the first two repeated over
the lanes. It knows nothing of pages or copies.
"""

import dataclasses
import functools
import math
from typing import Any

import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from pallas_kernels.narrow import widened
from pallas_kernels.ragged_attention.mosaic_tpu.walk import Walk

NEVER = -1e30  # a finite "minus infinity": rows that have seen nothing yet stay finite
LANES = 128
LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a kernel is compiled for.

    pages: of a row, None: row b owns page b. queries: of a full tile, a power of two. single: rows
    of one query have a body of their own. turned: pages lie in memory as [P, K, H, page_size].
    narrow: they are int8 or fp8 and have scales. far: other queries meet the sinks.
    """

    walk: Walk
    page_size: int
    pages: int | None
    queries: int
    single: bool
    turned: bool
    narrow: bool
    scale: float
    softcap: float | None
    far: bool
    precision: lax.Precision | None


class Softmax:
    """Of a tile with `size` queries (static), in the kernel's memory `r`: queries and outputs
    q, out [2, queries, N, H]; keys and values k, v [2, K, block, H], or [2, K, H, block] if turned;
    k_scale, v_scale [2, K, block] if narrow.
    """

    def __init__(self, r: Any, facts: Facts, size: int):
        self.r, self.facts, self.size = r, facts, size
        self.N, self.K = r.q.shape[2], r.k.shape[1]
        self.rows = size * (self.N // self.K)
        self.stride = r.wide.shape[1] // r.q.shape[1]  # rows of `wide` for one query

    def begin(self, buffer):
        """Sort the queries by head; nothing is seen yet."""
        r, K, rows = self.r, self.K, self.rows
        r.largest[:, :rows] = jnp.full((K, rows, LANES), NEVER, jnp.float32)
        r.total[:, :rows] = jnp.zeros((K, rows, LANES), jnp.float32)
        r.sum[:, :rows] = jnp.zeros((K, rows, r.sum.shape[2]), jnp.float32)
        pairs = [(r.q, r.heads)] + ([(r.far, r.far_heads)] if self.facts.far else [])
        for source, target in pairs:
            for i, place, lanes in self._queries(
                buffer
            ):  # float32: there single rows can be picked
                r.wide[place] = source[(*i, slice(None), lanes)].astype(jnp.float32)
            for head, (k, rows), lanes in self._heads():
                target[k, rows, lanes] = r.wide[head].astype(target.dtype)

    def end(self, buffer):
        """The outputs, sorted by query."""
        r = self.r
        for head, place, lanes in self._heads():
            r.wide[head] = r.sum[(*place, lanes)] / r.total[place][:, :1]
        for i, place, lanes in self._queries(buffer):
            r.out[(*i, slice(None), lanes)] = r.wide[place].astype(r.out.dtype)

    def _lanes(self):
        H = self.r.q.shape[3]
        return [(part, pl.ds(part * LANES, min(H, LANES))) for part in range(-(-H // LANES))]

    def _queries(self, buffer):
        """(query, its rows of `wide`, lanes) of all queries."""
        return [
            ((buffer, i), (part, pl.ds(i * self.stride, self.N), slice(None)), lanes)
            for i in range(self.size)
            for part, lanes in self._lanes()
        ]

    def _heads(self):
        """(rows of `wide`, place in a [K, rows, .] array, lanes) of all heads: of G heads at once
        for one query.
        """
        size, G = self.size, self.N // self.K
        if size == 1:
            pieces = [(pl.ds(k * G, G), (k, pl.ds(0, G))) for k in range(self.K)]
        else:
            pieces = [
                (pl.ds(n, size, stride=self.stride), (n // G, pl.ds(n % G * size, size)))
                for n in range(self.N)
            ]
        return [
            ((part, rows, slice(None)), place, lanes)
            for rows, place in pieces
            for part, lanes in self._lanes()
        ]

    def block(self, buffer, begin, tile, masked):
        """Add the block that begins at slot `begin`; masked (static) False promises that all of it
        is seen by the whole tile.
        """
        walk, far = self.facts.walk, None
        seen = used = scaled = None
        if masked:

            def position(shape):
                axis = shape.index(walk.block)
                slots = begin + lax.broadcasted_iota(jnp.int32, shape, axis)
                return walk.position(slots, tile.length)

            across, along = (1, walk.block), (walk.block, 1)
            query = tile.oldest + lax.broadcasted_iota(jnp.int32, (self.size, walk.block), 0)
            seen = walk.seen(position(across), query, query)
            of_values = position(across if self.facts.turned else along)
            used = walk.seen(of_values, tile.newest, tile.oldest)
            scaled = walk.seen(position(across), tile.newest, tile.oldest)
            if self.facts.far:
                far = begin + lax.broadcasted_iota(jnp.int32, across, 1) < walk.sinks
        if self.size == 1:  # little work each: let the compiler overlap the heads
            for k in range(self.K):
                self._head(k, buffer, seen, used, scaled, far)
        else:
            lax.fori_loop(
                0, self.K, lambda k, _: self._head(k, buffer, seen, used, scaled, far), None
            )

    def _head(self, k, buffer, seen, used, scaled, far):
        r, rows, facts = self.r, pl.ds(0, self.rows), self.facts
        key, value = r.k[buffer, k], r.v[buffer, k]
        if facts.narrow:
            key, value = (widened(x, jnp.float32).astype(r.heads.dtype) for x in (key, value))
        product = functools.partial(
            lax.dot_general, precision=facts.precision, preferred_element_type=jnp.float32
        )
        plain, transposed = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
        of_keys, of_values = (plain, transposed) if facts.turned else (transposed, plain)
        scores = product(r.heads[k, rows], key, of_keys)
        if far is not None:
            scores = jnp.where(far, product(r.far_heads[k, rows], key, of_keys), scores)
        if facts.narrow:
            scores = scores * r.k_scale[buffer, pl.ds(k, 1)]
        if facts.softcap is None:
            scores = scores * (facts.scale * LOG2_E)
        else:
            scores = jnp.tanh(scores * (facts.scale / facts.softcap)) * (facts.softcap * LOG2_E)
        if seen is not None:
            split = scores
            if self.size > 1:
                split = scores.reshape(self.rows // self.size, self.size, scores.shape[1])
            scores = jnp.where(seen, split, NEVER).reshape(scores.shape)
            # memory never written may hold NaN, and zero times NaN must not reach the sum
            value = jnp.where(used, value.astype(jnp.float32), 0.0).astype(value.dtype)
        before = r.largest[k, rows]
        largest = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        # a query that has seen nothing yet adds ones here, and its first key wipes them out below
        weights = jnp.exp2(scores - largest[:, :1])
        shrink = jnp.exp2(before - largest)
        r.largest[k, rows] = largest
        r.total[k, rows] = r.total[k, rows] * shrink + weights.sum(axis=1, keepdims=True)
        if facts.narrow:
            scale = r.v_scale[buffer, pl.ds(k, 1)]
            weights = weights * (scale if scaled is None else jnp.where(scaled, scale, 0.0))
        found = product(weights.astype(value.dtype), value, of_values)
        r.sum[k, rows] = r.sum[k, rows] * shrink[:, :1] + found
