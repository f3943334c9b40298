"""Rings are as large as their layers need, and no larger; writes land where the ring says."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import cache as kv
from jaxinfer.config import LayerConfig
from pallas_kernels.ring import slot_of
from tests import tiny


def test_a_window_costs_a_window():
    config = tiny.config()
    rings, groups = kv.plan_rings(config, 1000, max_chunk=8)
    assert groups == (0, 1)
    assert rings == (kv.Ring(1000), kv.Ring(tiny.WINDOW + 7, tiny.WINDOW))


def test_layers_with_the_same_window_share_a_group():
    layer, local = LayerConfig(), LayerConfig(window=4)
    rings, groups = kv.plan_rings(
        tiny.config(layers=(layer, local, layer, local)), 64, max_chunk=4, page_size=8
    )
    assert groups == (0, 1, 0, 1)
    assert [ring.capacity for ring in rings] == [64, 8]


def test_a_stream_keeps_sinks_only_where_a_layer_sees_far():
    rings, groups = kv.plan_rings(tiny.config(), 10**6, max_chunk=8, stream_window=16, sinks=4)
    assert rings == (kv.Ring(4 + 16 + 7, 16, 4), kv.Ring(tiny.WINDOW + 7, tiny.WINDOW))
    assert groups == (0, 1)


def test_learned_positions_have_an_end():
    with pytest.raises(ValueError, match="learned positions"):
        kv.plan_rings(tiny.config(learned_positions=64), 64, max_chunk=8, stream_window=16)


@pytest.mark.parametrize("paged", [False, True])
def test_write_puts_tokens_in_their_slots_and_padding_nowhere(rng, paged):
    ring, K, H, size = kv.Ring(8), 2, 4, 4 if paged else 8
    table = np.asarray([[3, 0], [1, 2]], np.int32) if paged else None
    blank = jnp.full((4 if paged else 2, K, size, H), -9.0)
    positions = np.asarray([[9, 10, -1], [2, -1, -1]], np.int32)  # row 0 has wrapped
    new = rng.normal(size=(2, 3, K, H)).astype(np.float32)
    pages = kv.Pages(k=blank, v=blank)
    if paged:
        rows = jnp.asarray(np.repeat([0, 1], 3), jnp.int32)
        flat = jnp.asarray(new.reshape(6, K, H))
        pages = kv.write(
            pages, ring, jnp.asarray(table), flat, -flat, jnp.asarray(positions.reshape(6)), rows
        )
    else:
        pages = kv.write(
            pages, ring, None, jnp.asarray(new), -jnp.asarray(new), jnp.asarray(positions), None
        )
    expected = np.asarray(blank).copy()
    for row, index in zip(*np.nonzero(positions >= 0), strict=True):
        slot = int(slot_of(jnp.int32(positions[row, index]), 8))
        expected[table[row, slot // size] if paged else row, :, slot % size] = new[row, index]
    np.testing.assert_array_equal(pages.k, expected)
    np.testing.assert_array_equal(pages.v, np.where(expected == -9.0, -9.0, -expected))


def test_a_ring_needs_room_beside_its_sinks():
    with pytest.raises(ValueError, match="more slots than sinks"):
        kv.Ring(4, None, 4)
