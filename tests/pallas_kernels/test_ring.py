"""The two maps of the ring against a buffer that is really written."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.ring import position_of, slot_of


@pytest.mark.parametrize(("capacity", "sinks"), [(7, 0), (7, 2), (1, 0), (16, 15)])
def test_maps_agree_with_writing_a_buffer(capacity, sinks):
    buffer = np.full(capacity, -1)
    for position in range(5 * capacity):
        slot = position if position < sinks else sinks + (position - sinks) % (capacity - sinks)
        assert int(slot_of(jnp.int32(position), capacity, sinks)) == slot
        buffer[slot] = position
        found = position_of(
            jnp.arange(capacity, dtype=jnp.int32), jnp.int32([position + 1]), capacity, sinks
        )[0]
        np.testing.assert_array_equal(found, buffer)


def test_an_empty_ring_holds_nothing():
    held = position_of(jnp.arange(8, dtype=jnp.int32), jnp.zeros((1,), jnp.int32), 8, 2)
    np.testing.assert_array_equal(held, np.full((1, 8), -1))
