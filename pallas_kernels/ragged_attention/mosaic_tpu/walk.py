"""Which blocks of a row's slots a tile of queries has to read, and which position each slot holds.

Arithmetic on scalars and vectors alike, for use inside a kernel: the same answers as
`pallas_kernels.ring.position_of`, but found with one division a row instead of one a slot. It knows
nothing of memory or copies.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

Int = Any  # a traced int32 scalar, or a vector of them


@dataclasses.dataclass(frozen=True)
class Walk:
    """A ring of `capacity` slots read in blocks of `block` slots, each copied in units of `unit`."""

    capacity: int
    block: int
    unit: int
    window: int | None
    sinks: int

    @property
    def blocks(self) -> int:
        return -(-self.capacity // self.block)

    def needed(self, first: Int, last: Int, length: Int) -> tuple[Int, Int]:
        """The slots that queries at positions first .. last of a row may see: they begin at the
        returned slot and go round the ring for the returned count.
        """
        if self.sinks:  # the sinks and the ring: everything that is held
            return jnp.int32(0), jnp.minimum(length, self.capacity)
        low = jnp.maximum(length - self.capacity, 0)
        if self.window is not None:
            low = jnp.maximum(low, first - self.window + 1)
        return jnp.remainder(low, self.capacity), last + 1 - low

    def count(self, slot: Int, slots: Int) -> Int:
        """How many blocks hold the `slots` slots that begin at `slot`."""
        end, begin = slot + slots, slot // self.block
        straight = (end - 1) // self.block - begin + 1
        around = self.blocks - begin + (end - self.capacity - 1) // self.block + 1
        return jnp.where(end <= self.capacity, straight, jnp.minimum(around, self.blocks))

    def nth(self, slot: Int, n: Int) -> Int:
        """The n-th of those blocks."""
        block = slot // self.block + n
        return jnp.where(block >= self.blocks, block - self.blocks, block)

    def touches(self, begin: Int, slot: Int, slots: Int) -> Int:
        """Whether the unit that begins at slot `begin` holds one of the needed slots."""
        end = slot + slots
        straight = (begin < jnp.minimum(end, self.capacity)) & (begin + self.unit > slot)
        return straight | (begin < end - self.capacity)

    def position(self, slot: Int, length: Int) -> Int:
        """The latest position below `length` in each slot, negative where there is none."""
        size, last = self.capacity - self.sinks, length - 1
        behind = jnp.remainder(last - self.sinks, size)  # slots of the ring's latest lap, less one
        inside = slot - self.sinks
        position = last - behind + jnp.where(inside <= behind, inside, inside - size)
        position = jnp.where((position >= self.sinks) & (slot < self.capacity), position, -1)
        if self.sinks:
            position = jnp.where(slot < self.sinks, jnp.where(slot <= last, slot, -1), position)
        return position

    def seen(self, position: Int, query: Int, oldest: Int) -> Int:
        """Whether a query at `query` sees a key at `position`, as the latest of several queries at
        `query` of which the first is at `oldest` (the same for one query): does any of them?
        """
        seen = (position >= 0) & (position <= query)
        if self.window is not None:
            near = position > oldest - self.window
            seen &= (near | (position < self.sinks)) if self.sinks else near
        return seen

    def all_seen(self, begin: Int, first: Int, last: Int, length: Int) -> Int:
        """Whether each of the queries first .. last sees each slot of the block that begins at slot
        `begin`, none of them a sink: then nothing needs a mask.
        """
        low = self.position(begin, length)
        high = self.position(begin + self.block - 1, length)
        whole = (low >= 0) & (high == low + self.block - 1) & (high <= first)
        if self.window is not None:
            whole &= low > last - self.window
        return (whole & (begin >= self.sinks)) if self.sinks else whole
