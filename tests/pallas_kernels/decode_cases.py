"""Small cases of decode attention with poison wherever nothing may read, and what must come out."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.narrow import narrowed
from pallas_kernels.ragged_attention import specification
from pallas_kernels.ragged_attention.cases import Case, places
from pallas_kernels.ring import position_of, slot_of

SMALL = [
    Case("one long row", (1024,), 1024, N=8, K=2, H=128),
    Case("rows of all lengths", (256, 0, 1, 65, 200, 128), 256, N=8, K=2, H=64),
    Case("small pages", (1000, 31, 256), 1024, N=8, K=1, H=128, page_size=16),
    Case("large pages", (300, 700, 64), 1024, N=4, K=4, H=80, page_size=128),
    Case("rings that wrapped", (5000, 640, 129, 3, 900), 640, N=4, K=2, H=96, window=400),
    Case("narrow windows, soft cap", (700, 100, 5), 512, N=16, K=2, H=256, window=70, softcap=5.0),
    Case("streams with sinks", (5000, 630, 3), 640, N=4, K=2, H=64, window=600, sinks=4, page_size=64),
]  # fmt: skip


def drawn(rng, case, poisoned_newest):
    """Queries, far queries, pages with NaN in all slots that nothing may read, the table, and the
    newest keys and values, as bfloat16.
    """
    B, shape = len(case.lengths), (case.K, case.H)
    page_size = case.page_size or case.capacity
    pages = case.capacity // page_size
    table = None
    if case.page_size is not None:
        table = rng.permutation(B * pages).reshape(B, pages).astype(np.int32)
    k, v = (np.full((B * pages, case.K, page_size, case.H), np.nan, np.float32) for _ in "kv")
    new = [rng.normal(size=(B, *shape)) for _ in "kv"]
    slots = jnp.arange(case.capacity, dtype=jnp.int32)
    lengths = np.asarray(case.lengths, np.int32)
    held = np.asarray(position_of(slots, jnp.asarray(lengths), case.capacity, case.sinks))
    near = lengths[:, None] - held <= (case.window or case.capacity)
    for row, slot in np.argwhere((held >= 0) & (near | (held < case.sinks))):
        page = row if table is None else table[row, slot // page_size]
        newest = held[row, slot] == lengths[row] - 1
        for where, x in zip((k, v), new, strict=True):
            value = x[row] if newest else rng.normal(size=shape)
            where[page, :, slot % page_size] = np.nan if newest and poisoned_newest else value
    q, far = (rng.normal(size=(B, case.N, case.H)) for _ in "qf")
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (q, far, k, v, *new)]
    return arrays, None if table is None else jnp.asarray(table)


def expected_of(case, q, far, k, v, table):
    arrays = [np.asarray(x, np.float32) for x in (q, k, v)]
    starts, counts, lengths = (np.asarray(x) for x in places(case))
    counts = np.where(lengths > 0, counts, 0)
    rules = {key: case.rules[key] for key in ("capacity", "scale", "window", "softcap", "sinks")}
    far = np.asarray(far, np.float32) if case.sinks else None
    table = None if table is None else np.asarray(table)
    return specification(*arrays, table, starts, counts, lengths, **rules, q_far=far)


def narrow_of(pages):
    """Pages as int8: (values, scales, what those say), the poison now in the scales."""
    values, scales = narrowed(pages, "int8")
    values = jnp.where(jnp.isnan(scales)[..., None], jnp.int8(127), values)
    return values, scales, np.asarray(values.astype(jnp.float32) * scales[..., None])


def with_newest(case, pages, new, table):
    """The pages with the newest keys or values in their slots."""
    lengths = np.asarray(case.lengths)
    slot = np.asarray(slot_of(jnp.asarray(lengths - 1), case.capacity, case.sinks))
    pages = np.array(pages, np.float32)
    size = pages.shape[2]
    for row in np.flatnonzero(lengths > 0):
        page = row if table is None else int(table[row, slot[row] // size])
        pages[page, :, slot[row] % size] = np.asarray(new[row], np.float32)
    return pages


def assert_near(found, expected):
    found = np.asarray(found, np.float32)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) <= 1e-2 * np.linalg.norm(expected)
