"""The Hopper prefill kernel: equals its specification on a GPU, and lowers for one anywhere."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.ragged_attention import mosaic_gpu_prefill, ragged_attention, specification
from pallas_kernels.ring import position_of

# counts, lengths, head size, capacity, page size or None, window, soft cap
CASES = {
    "one prompt": ([130], [130], 128, 256, None, None, None),
    "a chunk behind a prefix": ([300], [500], 64, 512, None, None, None),
    "rows of all kinds": ([3, 140, 1], [200, 240, 77], 128, 512, 128, None, None),
    "a ring that wrapped": ([100, 30], [800, 290], 128, 256, None, 100, None),
    "small pages, two windows' worth": ([100, 300], [900, 700], 128, 512, 64, 120, None),
    "soft cap": ([20, 200], [40, 290], 128, 512, 16, None, 5.0),
    "large heads": ([200, 130], [290, 300], 256, 512, None, None, None),
    "more tiles than multiprocessors": ([700] * 8, [1000] * 8, 64, 1024, None, None, None),
}


def arguments(rng, counts, lengths, H, capacity, page_size, N=4, K=2):
    """Queries, pages with NaN in every slot that holds nothing, and the places, as numpy."""
    B = len(counts)
    table, P = None, B
    if page_size is not None:
        P = B * capacity // page_size + 2
        table = rng.permutation(P)[: B * capacity // page_size].reshape(B, -1).astype(np.int32)
    k, v = (np.full((P, K, page_size or capacity, H), np.nan, np.float32) for _ in "kv")
    lengths = np.asarray(lengths, np.int32)
    held = np.asarray(
        position_of(jnp.arange(capacity, dtype=jnp.int32), jnp.asarray(lengths), capacity)
    )
    for row in range(B):
        slots = np.flatnonzero(held[row] >= 0)
        size = page_size or capacity
        at = (row if table is None else table[row, slots // size], slots % size)
        for pages in (k, v):
            pages[at[0], :, at[1]] = rng.normal(size=(len(slots), K, H))
    q = rng.normal(size=(sum(counts), N, H))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    places = (table, starts, np.asarray(counts, np.int32), lengths)
    return tuple(np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in (q, k, v)), places


@pytest.fixture(params=[False, True], ids=["a worker a tile", "persistent"])
def workers(request, monkeypatch):
    """Both schedules of the kernel."""
    fitting = mosaic_gpu_prefill.fitting

    def chosen(head_dim):
        return dataclasses.replace(fitting(head_dim), persistent=request.param)

    monkeypatch.setattr(mosaic_gpu_prefill, "fitting", chosen)


@pytest.mark.gpu
@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_specification(rng, case):
    counts, lengths, H, capacity, page_size, window, softcap = CASES[case]
    arrays, places = arguments(rng, counts, lengths, H, capacity, page_size)
    rules = dict(capacity=capacity, scale=H**-0.5, window=window, softcap=softcap)
    expected = specification(*arrays, *places, **rules)
    run = jax.jit(
        functools.partial(
            ragged_attention,
            **rules,
            max_count=max(counts),
            span=capacity,
            packed=True,
            backend="mosaic_gpu_prefill",
        )
    )
    given = [None if x is None else jnp.asarray(x) for x in (*arrays, *places)]
    found = np.asarray(run(*given), np.float32)
    assert np.linalg.norm(found - expected) <= 1e-2 * np.linalg.norm(expected)
    np.testing.assert_array_equal(found, np.asarray(run(*given), np.float32))


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("case", CASES)
def test_lowers_for_a_gpu(rng, case):
    counts, lengths, H, capacity, page_size, window, softcap = CASES[case]
    arrays, places = arguments(rng, counts, lengths, H, capacity, page_size)
    run = jax.jit(
        functools.partial(
            ragged_attention,
            capacity=capacity,
            scale=H**-0.5,
            window=window,
            softcap=softcap,
            max_count=max(counts),
            span=capacity,
            packed=True,
            backend="mosaic_gpu_prefill",
        )
    )
    lowered = run.trace(*arrays, *places).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(H=80), "heads of 64, 128 or 256"),
        (dict(sinks=4), "sinks"),
        (dict(capacity=200, window=50), "multiple of 128 slots"),
        (dict(dtype=jnp.float32), "bfloat16"),
        (dict(page_size=48), "pages that divide 128"),
    ],
)
def test_refuses_what_it_cannot_do(change, message):
    case: dict[str, Any] = dict(H=64, sinks=0, capacity=256, window=None, page_size=None)
    case |= dict(dtype=jnp.bfloat16) | change
    size = case["page_size"] or case["capacity"]
    q = jnp.zeros((128, 2, case["H"]), case["dtype"])
    pages = jnp.zeros((8, 1, size, case["H"]), case["dtype"])
    table = None if case["page_size"] is None else jnp.zeros((1, 8), jnp.int32)
    one = jnp.full((1,), 128, jnp.int32)
    rules = dict(capacity=case["capacity"], window=case["window"], sinks=case["sinks"], scale=1.0)
    shape: dict[str, Any] = dict(max_count=128, span=256, packed=True, backend="mosaic_gpu_prefill")
    with pytest.raises(NotImplementedError, match=message):
        ragged_attention(q, pages, pages, table, one * 0, one, one, **rules, **shape)
