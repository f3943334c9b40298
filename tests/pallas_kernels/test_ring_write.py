"""Writing to the ring equals its specification in Pallas's TPU simulator, races and all."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ring_write import mosaic_tpu, ring_write, specification

SIMULATOR = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
CASES = {
    "decode": dict(lengths=[0, 1, 40, 17, 32], counts=[0, 1, 1, 0, 1], capacity=48),
    "prefill": dict(lengths=[40, 0, 9], counts=[40, 0, 9], capacity=48),
    "chunks": dict(lengths=[75, 33], counts=[30, 16], capacity=80, page_size=16),
    "wrapped": dict(lengths=[150, 70, 48], counts=[38, 1, 9], capacity=48),
    "wrapped inside a tile": dict(lengths=[33, 100], counts=[21, 5], capacity=22),
    "sinks": dict(lengths=[90, 3, 8], counts=[9, 1, 8], capacity=32, sinks=5),
    "H=64": dict(lengths=[260, 130], counts=[9, 1], capacity=256, H=64, page_size=128),
    "H=80, bfloat16": dict(lengths=[90], counts=[90], capacity=128, H=80, dtype=jnp.bfloat16),
    "H=256": dict(lengths=[20, 7], counts=[1, 1], capacity=32, H=256),
    "bfloat16": dict(lengths=[40, 90], counts=[18, 1], capacity=48, dtype=jnp.bfloat16),
    "int8 decode": dict(
        lengths=[0, 130, 40, 257], counts=[0, 1, 1, 1], capacity=256, dtype=jnp.int8
    ),
    "int8 chunks": dict(
        lengths=[300, 33], counts=[200, 16], capacity=256, page_size=128, dtype=jnp.int8
    ),
    "fp8, sinks": dict(lengths=[390, 8], counts=[9, 8], capacity=130, sinks=5, dtype=jnp.uint8),
    "fp8, H=64": dict(lengths=[150, 70], counts=[1, 1], capacity=128, H=64, dtype=jnp.uint8),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_specification(rng, capfd, case):
    H, capacity, sinks = case.get("H", 128), case["capacity"], case.get("sinks", 0)
    dtype, page_size, table = case.get("dtype", jnp.float32), case.get("page_size"), None
    lengths, counts = (np.asarray(case[name], np.int32) for name in ("lengths", "counts"))
    P = len(lengths)
    if page_size is not None:
        P *= capacity // page_size
        table = rng.permutation(P).reshape(len(lengths), -1).astype(np.int32)
    narrow = jnp.dtype(dtype).itemsize == 1
    tile = 16 if H >= 128 and not narrow else 128
    size = page_size or -(-capacity // tile) * tile
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    pages = [50 * rng.normal(size=(P, 2, size, H)) for _ in "kv"]
    new = [50 * rng.normal(size=(int(counts.sum()) + 2, 2, H)) for _ in "kv"]
    pages, new = (
        [jnp.asarray(np.clip(x, 0 if dtype == jnp.uint8 else -127, 127), dtype) for x in xs]
        for xs in (pages, new)
    )
    if narrow:
        pages += [jnp.asarray(rng.normal(size=(P, 2, size)), jnp.float32) for _ in "kv"]
        new += [jnp.asarray(rng.normal(size=new[0].shape[:2]), jnp.float32) for _ in "kv"]
    places = (table, starts, counts, lengths)
    rules = dict(capacity=capacity, sinks=sinks)
    expected = specification(pages, new, *places, **rules)
    places = tuple(None if x is None else jnp.asarray(x) for x in places)
    found = mosaic_tpu.ring_write(
        pages, new, *places, **rules, max_count=int(counts.max()), interpret=SIMULATOR
    )
    assert "RACE" not in capfd.readouterr().out
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)


def test_shapes_are_checked():
    pages, one = jnp.zeros((1, 2, 16, 128)), jnp.ones((1,), jnp.int32)
    new = jnp.zeros((1, 3, 128))
    with pytest.raises(ValueError, match=r"needs k, v \[T, K, H\]"):
        ring_write([pages, pages], [new, new], None, one, one, one, capacity=16, max_count=1)


def test_bytes_need_scales():
    pages, new = jnp.zeros((1, 2, 128, 128), jnp.int8), jnp.zeros((1, 2, 128), jnp.int8)
    one = jnp.ones((1,), jnp.int32)
    with pytest.raises(ValueError, match="also scales"):
        ring_write([pages] * 2, [new] * 2, None, one, one, one, capacity=128, max_count=1)


def test_a_named_backend_says_what_it_cannot_do():
    pages, one = jnp.zeros((1, 2, 12, 128)), jnp.ones((1,), jnp.int32)
    new = jnp.zeros((1, 2, 128))
    with pytest.raises(NotImplementedError, match="multiple of 8 slots"):
        ring_write([pages, pages], [new, new], None, one, one, one, capacity=12, max_count=1)
