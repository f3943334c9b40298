"""The TPU kernel equals the specification in Pallas's TPU simulator, which checks races between
copies and fills memory that was never written with NaN.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ragged_attention import mosaic_tpu, ragged_attention, specification
from pallas_kernels.ring import position_of
from tests.pallas_kernels.test_ragged_attention import narrowed

BLOCKS = mosaic_tpu.Blocks(queries=8, slots=128)
SIMULATOR = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def poisoned_pages(rng, lengths, capacity, sinks, K, page_size, H, table):
    """Pages in float32 that hold NaN but where a row's slot holds a position."""
    P = len(lengths) if table is None else table.max() + 1
    k, v = (np.full((P, K, page_size, H), np.nan, np.float32) for _ in "kv")
    slots = jnp.arange(capacity, dtype=jnp.int32)
    held = np.asarray(position_of(slots, jnp.asarray(lengths), capacity, sinks))
    for row in range(len(lengths)):
        for slot in np.flatnonzero(held[row] >= 0):
            page = row if table is None else table[row, slot // page_size]
            for pages in (k, v):
                pages[page, :, slot % page_size] = rng.normal(size=(K, H))
    return k, v


def run(
    rng,
    lengths,
    counts,
    capacity,
    *,
    heads=(4, 2, 128),
    page_size=None,
    window=None,
    sinks=0,
    softcap=None,
    dtype=jnp.float32,
    narrow=None,
    packed=True,
):
    """(found, expected) of random inputs, padding cut off."""
    N, K, H = heads
    lengths, counts = np.asarray(lengths, np.int32), np.asarray(counts, np.int32)
    table = None
    if page_size is not None:
        pages = len(lengths) * (-(-capacity // page_size))
        table = rng.permutation(pages).reshape(len(lengths), -1).astype(np.int32)
    tile = 16 if H >= 128 and narrow is None else 128
    size = page_size or -(-capacity // tile) * tile
    k, v = poisoned_pages(rng, lengths, capacity, sinks, K, size, H, table)
    most = int(counts.max())
    if packed:
        starts, T = np.cumsum(counts) - counts, int(counts.sum()) + 3
    else:
        starts, T = np.arange(len(counts)) * most, len(counts) * most
    q, far = (rng.normal(size=(T, N, H)).astype(np.float32) for _ in "qf")
    scales = {}
    if narrow is not None:
        (k, k_scale), (v, v_scale) = narrowed(k, narrow), narrowed(v, narrow)
        scales = dict(k_scale=k_scale, v_scale=v_scale)
    q, far, k, v = (
        jnp.asarray(x, narrow or dtype if x.ndim == 4 else dtype) for x in (q, far, k, v)
    )
    places = (table, starts.astype(np.int32), counts, lengths)
    rules = dict(capacity=capacity, scale=H**-0.5, window=window, sinks=sinks, softcap=softcap)
    rules["q_far"] = far if sinks else None
    expected = specification(q, k, v, *places, **rules, **scales)
    rules |= {name: jnp.asarray(x) for name, x in scales.items()}
    places = tuple(None if x is None else jnp.asarray(x) for x in places)
    shape = dict(max_count=most, span=capacity, packed=packed)
    blocks = mosaic_tpu.Blocks(1 if most == 1 else BLOCKS.queries, BLOCKS.slots)
    found = mosaic_tpu.ragged_attention(
        q, k, v, *places, **rules, **shape, blocks=blocks, interpret=SIMULATOR
    )
    assert np.isfinite(np.asarray(found, np.float32)).all()
    real = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
    return np.asarray(found, np.float32)[real], expected[real]


CASES = {
    "decode": dict(lengths=[5, 300, 128, 129], counts=[1, 1, 1, 1], capacity=304),
    "decode, some rows idle": dict(
        lengths=[0, 9, 0, 40, 0], counts=[0, 1, 0, 1, 0], capacity=48, packed=False
    ),
    "prefill": dict(lengths=[20, 0, 9], counts=[20, 0, 9], capacity=32, packed=False),
    "mixed, pages": dict(lengths=[150, 7, 260], counts=[20, 1, 1], capacity=272, page_size=16),
    "long pages": dict(lengths=[290, 40], counts=[9, 1], capacity=512, page_size=256),
    "wrapped window": dict(lengths=[1000, 300, 40], counts=[1, 12, 9], capacity=280, window=260),
    "short window": dict(
        lengths=[700, 60], counts=[10, 1], capacity=384, page_size=128, window=20, softcap=2.0
    ),
    "sinks": dict(lengths=[900, 200, 3], counts=[9, 1, 2], capacity=288, window=270, sinks=5),
    "bfloat16": dict(
        lengths=[200, 17], counts=[9, 1], capacity=208, page_size=16, dtype=jnp.bfloat16
    ),
    "H=64": dict(lengths=[200, 17], counts=[9, 1], capacity=256, heads=(4, 2, 64), page_size=128),
    "H=64, sinks": dict(
        lengths=[700, 9], counts=[1, 1], capacity=256, heads=(4, 2, 64), window=200, sinks=4
    ),
    "H=80": dict(lengths=[130], counts=[10], capacity=256, heads=(2, 2, 80)),
    "H=96, bfloat16": dict(
        lengths=[130, 30], counts=[1, 30], capacity=256, heads=(3, 1, 96), dtype=jnp.bfloat16
    ),
    "H=256": dict(lengths=[140, 2], counts=[9, 1], capacity=144, heads=(4, 1, 256)),
    "int8 decode": dict(lengths=[5, 300, 128], counts=[1, 1, 1], capacity=384, narrow="int8"),
    "int8, pages": dict(
        lengths=[150, 7, 260], counts=[20, 1, 1], capacity=384, page_size=128, narrow="int8"
    ),
    "int8, wrapped window": dict(
        lengths=[1000, 300, 40], counts=[1, 12, 9], capacity=280, window=260, narrow="int8"
    ),
    "fp8, H=64, sinks": dict(
        lengths=[700, 9],
        counts=[9, 1],
        capacity=256,
        heads=(4, 2, 64),
        window=200,
        sinks=4,
        narrow="uint8",
    ),
    "fp8, bfloat16 queries": dict(
        lengths=[200, 17], counts=[9, 1], capacity=256, dtype=jnp.bfloat16, narrow="uint8"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_specification(rng, capfd, case):
    found, expected = run(rng, **case)
    assert "RACE" not in capfd.readouterr().out
    if case.get("dtype") == jnp.bfloat16:
        assert np.linalg.norm(found - expected) < 1e-2 * np.linalg.norm(expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_the_kernel_cannot_take_is_said():
    one, q = jnp.ones((1,), jnp.int32), jnp.zeros((1, 2, 128))
    pages = jnp.zeros((1, 2, 16, 128))
    rules = dict(capacity=16, scale=1.0, max_count=1, span=16, packed=False)
    for changes, message in (
        (dict(q=q.astype(jnp.bfloat16)), "one dtype"),
        (dict(pages=pages[:, :, :12]), "multiple of 8 slots"),
        (dict(q=q[:, :, :64], pages=pages[..., :64]), "multiple of 128 slots"),
        (dict(pages=pages.astype(jnp.int8)), "multiple of 128 slots for int8"),
        (dict(q=q[:, :, :30], pages=pages[..., :30]), "heads of a multiple of 8"),
        (dict(table=jnp.zeros((1, 200_000), jnp.int32)), "take larger pages"),
    ):
        given = dict(q=q, pages=pages, table=None) | changes
        arrays = given["q"], given["pages"], given["pages"], given["table"]
        scale = jnp.ones(given["pages"].shape[:3]) if given["pages"].dtype == jnp.int8 else None
        scales = dict(k_scale=scale, v_scale=scale)
        with pytest.raises(NotImplementedError, match=message):
            ragged_attention(*arrays, one, one, one, **rules, **scales, backend="mosaic_tpu")
