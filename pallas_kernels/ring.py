"""The ring: which slot of a fixed buffer holds a position, and which position a slot holds.

A buffer of `capacity` slots keeps the first `sinks` positions for good and the others in a ring
over the remaining slots (`sinks=0`: position p lies in slot p % capacity). Both maps follow from
the length alone.
"""

import jax
import jax.numpy as jnp


def slot_of(position: jax.Array, capacity: int, sinks: int = 0) -> jax.Array:
    """The slot of each position (any shape, int32; positions >= 0)."""
    ring = sinks + jnp.remainder(position - sinks, capacity - sinks)
    return jnp.where(position < sinks, position, ring) if sinks else ring


def position_of(slot: jax.Array, length: jax.Array, capacity: int, sinks: int = 0) -> jax.Array:
    """The latest position below `length` that lies in each slot, or -1 where there is none.

    slot [S] int32, length [B] int32 -> [B, S] int32.
    """
    slot, last = slot[None, :], length[:, None] - 1
    back = jnp.remainder(last - sinks - (slot - sinks), capacity - sinks)
    position = jnp.where(last - back >= sinks, last - back, -1)
    if sinks:
        position = jnp.where(slot < sinks, jnp.where(slot <= last, slot, -1), position)
    return position
