"""Ragged paged ring attention equals its specification: rows of any kind, wrapped rings, poisoned
memory.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_kernels.ragged_attention import mosaic_gpu, ragged_attention, specification
from pallas_kernels.ring import position_of

N, K, H = 6, 2, 8


def pages_for(rng, lengths, capacity, sinks, page_size, table):
    """Pages whose valid slots hold random values and whose other slots hold NaN."""
    P = len(lengths) if table is None else table.max() + 1
    k, v = (np.full((P, K, page_size, H), np.nan, np.float32) for _ in "kv")
    held = np.asarray(
        position_of(jnp.arange(capacity, dtype=jnp.int32), jnp.asarray(lengths), capacity, sinks)
    )
    for row in range(len(lengths)):
        for slot in np.flatnonzero(held[row] >= 0):
            page = row if table is None else table[row, slot // page_size]
            for pages in (k, v):
                pages[page, :, slot % page_size] = rng.normal(size=(K, H))
    return k, v


def narrowed(pages, dtype):
    """pages in steps of each vector's largest element, and the scales; NaN stays in both where a type
    has it.
    """
    scale = np.abs(pages).max(axis=-1) / np.float32(127 if dtype == "int8" else 448)
    steps = pages / scale[..., None]
    if dtype == "int8":
        return np.where(np.isnan(steps), 99, np.rint(steps)).astype(np.int8), scale
    return steps.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), scale


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(
    ("capacity", "window", "sinks", "lengths", "counts"),
    [
        (16, None, 0, [16, 7, 3, 1], [4, 7, 1, 1]),  # a chunk, a prompt, a decode, a first token
        (8, 5, 0, [29, 8, 3, 11], [4, 1, 3, 2]),  # a window whose ring has wrapped
        (12, 6, 3, [50, 9, 12, 2], [3, 2, 1, 2]),  # a stream with sinks
        (160, None, 0, [150, 9, 140], [149, 2, 130]),  # more queries than a block of the walk
    ],
)
def test_equals_the_specification(rng, dtype, paged, capacity, window, sinks, lengths, counts):
    page_size, table = capacity, None
    if paged:
        page_size = 4
        table = (
            rng.permutation(len(lengths) * (capacity // 4))
            .reshape(len(lengths), -1)
            .astype(np.int32)
        )
    k, v = pages_for(rng, np.asarray(lengths, np.int32), capacity, sinks, page_size, table)
    scales = {}
    if dtype != "float32":
        (k, k_scale), (v, v_scale) = narrowed(k, dtype), narrowed(v, dtype)
        scales = dict(k_scale=k_scale, v_scale=v_scale)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    q, q_far = (
        rng.normal(size=(sum(counts) + 3, N, H)).astype(np.float32) for _ in "qf"
    )  # 3 tokens of padding
    places = (table, starts, np.asarray(counts, np.int32), np.asarray(lengths, np.int32))
    rules = dict(
        capacity=capacity,
        scale=0.3,
        window=window,
        sinks=sinks,
        softcap=4.0,
        q_far=q_far if sinks else None,
    )
    expected = specification(q, k, v, *places, **rules, **scales)
    shape = dict(max_count=max(counts), span=capacity, packed=True)
    places = tuple(None if x is None else jnp.asarray(x) for x in places)
    rules |= {name: jnp.asarray(x) for name, x in scales.items()}
    found = np.asarray(
        ragged_attention(*(jnp.asarray(x) for x in (q, k, v)), *places, **rules, **shape)
    )
    np.testing.assert_allclose(found[: sum(counts)], expected[: sum(counts)], rtol=1e-5, atol=1e-5)
    assert np.isfinite(found).all()


def test_reads_no_further_than_the_span(rng):
    lengths = np.asarray([5, 3], np.int32)
    k, v = pages_for(rng, lengths, 64, 0, 64, None)
    q = rng.normal(size=(2, N, H)).astype(np.float32)
    places = (None, np.asarray([0, 1], np.int32), np.ones(2, np.int32), lengths)
    rules = dict(capacity=64, scale=0.3)
    expected = specification(q, k, v, *places, **rules)
    short = [np.where(np.arange(64)[:, None] < 8, pages, np.inf) for pages in (k, v)]
    places = (None, *(jnp.asarray(x) for x in places[1:]))
    arrays = (jnp.asarray(x) for x in (q, *short))
    found = ragged_attention(*arrays, *places, **rules, max_count=1, span=8, packed=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_shapes_are_checked():
    pages, one = jnp.zeros((1, 2, 4, 8)), jnp.ones((1,), jnp.int32)
    shape = dict(capacity=4, scale=1.0, max_count=2, span=4)
    with pytest.raises(ValueError, match="N a multiple of K"):
        ragged_attention(
            jnp.zeros((2, 3, 8)), pages, pages, None, one, one, one, **shape, packed=True
        )
    with pytest.raises(ValueError, match="T = B \\* max_count"):
        ragged_attention(
            jnp.zeros((3, 2, 8)), pages, pages, None, one, one, one, **shape, packed=False
        )


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_only_some_backends_take_scales(dtype):
    q, pages = jnp.zeros((1, 2, 64), jnp.bfloat16), jnp.zeros((1, 2, 64, 64), dtype)
    scales = dict.fromkeys(("k_scale", "v_scale"), jnp.ones(pages.shape[:3]))
    one = jnp.ones((1,), jnp.int32)
    rules = dict(capacity=64, window=None, sinks=0, q_far=None)
    for count, reason in ((1, "int8 pages"), (8, "bfloat16")):
        assert reason in str(mosaic_gpu.why_not(q, pages, None, max_count=count, **rules))
    given = dict(capacity=64, scale=1.0, max_count=1, span=64, packed=False)
    refusals = {"mosaic_gpu_prefill": "pages without scales"}
    if dtype == jnp.uint8:
        refusals["mosaic_gpu"] = "needs bfloat16 queries and pages, or int8 pages"
    for backend, reason in refusals.items():
        with pytest.raises(NotImplementedError, match=reason):
            ragged_attention(
                q, pages, pages, None, one, one, one, **given, **scales, backend=backend
            )
    with pytest.raises(ValueError, match="needs k_scale and v_scale with pages of int8 or uint8"):
        ragged_attention(q, pages, pages, None, one, one, one, **given)
    wide = pages.astype(jnp.bfloat16)
    with pytest.raises(ValueError, match="and no others"):
        ragged_attention(q, wide, wide, None, one, one, one, **given, **scales)
