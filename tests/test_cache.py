"""Rings are as large as their layers need, and no larger; writes land where the ring says."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxinfer import cache as kv
from jaxinfer.config import LayerConfig
from pallas_kernels.narrow import TOPS, widened
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


def rounded(x: np.ndarray, name: str) -> np.ndarray:
    """Each vector [..., H] as int8 or fp8 steps of its largest element, in numpy float32."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(TOPS[kv.KV_DTYPES[name]])
    steps = x / np.where(scale == 0, np.float32(1), scale)
    if name == "int8":
        return np.rint(steps) * scale
    return steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.parametrize("paged", [False, True])
def test_narrow_pages_hold_each_vector_in_steps_of_its_largest_element(rng, name, paged):
    ring, K, H = kv.Ring(8, sinks=2), 3, 6
    config = tiny.config(num_heads=K, num_kv_heads=K, head_dim=H, layers=tiny.config().layers[:1])
    sizes = dict(page_size=4, num_pages=[5]) if paged else {}
    cache = kv.init_cache(config, [ring], [0], 2, name, **sizes)
    pages = cache.layers[0]
    assert pages.k.dtype == pages.v.dtype == kv.KV_DTYPES[name]
    k, v = (rng.normal(size=(2, 3, K, H)).astype(np.float32) for _ in "kv")
    k *= 10.0 ** rng.integers(-30, 30, k.shape[:3])[..., None]  # each has a size of its own
    k[0, 1, 2] = 0
    positions = np.asarray([[9, 10, -1], [1, 2, -1]], np.int32)
    table = np.asarray([[3, 0], [1, 4]], np.int32) if paged else None
    place = [positions, None]
    if paged:
        rows = np.repeat(np.asarray([0, 1], np.int32), 3)
        k, v, place = k.reshape(6, K, H), v.reshape(6, K, H), [positions.reshape(6), rows]
    place = [None if x is None else jnp.asarray(x) for x in place]
    table_ = None if table is None else jnp.asarray(table)
    pages = kv.write(pages, ring, table_, jnp.asarray(k), jnp.asarray(v), *place)
    size = pages.k.shape[2]
    shape = (2, 3, K, H)
    for kept, scale, given in ((pages.k, pages.k_scale, k), (pages.v, pages.v_scale, v)):
        found = np.asarray(widened(kept, jnp.float32)) * np.asarray(scale)[..., None]
        expected = np.zeros_like(found)
        for row, i in zip(*np.nonzero(positions >= 0), strict=True):
            slot = int(slot_of(jnp.int32(positions[row, i]), 8, 2))
            page = table[row, slot // size] if paged else row
            expected[page, :, slot % size] = rounded(given.reshape(shape)[row, i], name)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.isfinite(found).all()


def test_an_unknown_type_is_refused_and_scales_count():
    with pytest.raises(ValueError, match="one of float32, bfloat16, int8, fp8, got 'int4'"):
        kv.kv_dtype_of("int4")
    assert [kv.vector_bytes(64, name) for name in kv.KV_DTYPES] == [256, 128, 68, 68]


def test_a_ring_needs_room_beside_its_sinks():
    with pytest.raises(ValueError, match="more slots than sinks"):
        kv.Ring(4, None, 4)


@pytest.mark.parametrize("narrow", [False, True])
def test_pages_come_near_and_only_new_tokens_go_back(rng, narrow):
    """Rows at a page's middle, past a ring's end, and idle; row 2 shares row 0's first page."""
    rings, size, most = (kv.Ring(16), kv.Ring(8, 5)), 4, 3
    config = tiny.config(layers=(LayerConfig(), LayerConfig(window=5)))
    blank = kv.init_cache(
        config, rings, (0, 1), 3, "int8" if narrow else "float32", page_size=size, num_pages=(12, 6)
    )
    tables = [rng.permutation(n).reshape(3, -1).astype(np.int32) for n in (12, 6)]
    tables[0][2, 0] = tables[0][0, 0]
    lengths = np.asarray([6, 9, 5], np.int32)
    layers = jax.tree.map(
        lambda x: jnp.asarray(rng.integers(-99, 99, x.shape), x.dtype), blank.layers
    )
    cache = blank.replace(
        layers=layers, tables=tuple(map(jnp.asarray, tables)), lengths=jnp.asarray(lengths)
    )
    part = kv.near(cache, 12)
    assert part.tables == (None, None)
    for ring, table, kept, found in zip(rings, tables, layers, part.layers, strict=True):
        slots = min(12, ring.capacity)
        for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(found), strict=True):
            assert y.shape[:3] == (3, x.shape[1], slots)
            for row in range(3):
                whole = np.concatenate([np.asarray(x)[page] for page in table[row]], axis=1)
                np.testing.assert_array_equal(np.asarray(y)[row], whole[:, :slots])
    added = np.asarray([3, 2, 0])
    changed = jax.tree.map(
        lambda x: jnp.asarray(rng.integers(-99, 99, x.shape), x.dtype), part.layers
    )
    after = kv.put_back(cache, part.replace(layers=changed, lengths=lengths + added), most)
    assert after.tables is cache.tables
    for ring, table, kept, new, found in zip(
        rings, tables, layers, changed, after.layers, strict=True
    ):
        for x, y, z in zip(*map(jax.tree.leaves, (kept, new, found)), strict=True):
            expected = np.array(x)
            for row in range(3):
                for position in range(lengths[row], lengths[row] + added[row]):
                    slot = position % ring.capacity
                    expected[table[row, slot // size], :, slot % size] = np.asarray(y)[row, :, slot]
            np.testing.assert_array_equal(np.asarray(z), expected)
