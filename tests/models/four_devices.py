"""Run by test_cached_attention.py in its own process, which has four CPU devices: attention over the
cache shard by shard, as TPUs run it, against the whole of it. The kernels' places are taken by
XLA's versions, so what is compared is who holds what.

Usage: python -m tests.models.four_devices SEED; one line of JSON a case: the largest differences.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import cache, ragged, sharding
from jaxinfer.models import cached_attention
from pallas_kernels.ragged_attention import ragged_attention

B, N, K, H, CAPACITY, SINKS = 4, 8, 4, 128, 48, 3
CASES = {  # new tokens of each row, mesh, how rows find their pages
    "decode": ([1, 1, 0, 1], {"data": 2, "model": 2}, "own"),
    "prefill": ([5, 0, 3, 4], {"data": 2, "model": 2}, "own"),
    "shared pages": ([2, 1, 0, 2], {"data": 2, "model": 2}, "table"),
    "packed": ([7, 1, 1, 4], {"model": 4}, "slots"),
    "packed copies": ([7, 1, 1, 4], {"data": 2, "model": 2}, "slots"),
    "packed shared pages": ([7, 1, 0, 4], {"data": 2, "model": 2}, "packed table"),
}


def written_by_xla(
    k_pages, v_pages, k, v, table, starts, counts, lengths, *, capacity, sinks, max_count
):
    ring = cache.Ring(capacity, None, sinks)
    T, rows = k.shape[0], counts.shape[0]
    table = jnp.arange(rows, dtype=jnp.int32)[:, None] if table is None else table
    inside = jnp.arange(T)[:, None] - starts
    mine = (inside >= 0) & (inside < counts)  # [T, rows]
    row = jnp.argmax(mine, axis=1).astype(jnp.int32)
    position = (lengths - counts)[row] + jnp.arange(T, dtype=jnp.int32) - starts[row]
    position = jnp.where(mine.any(axis=1), position, -1)
    pages = cache.write(cache.Pages(k_pages, v_pages), ring, table, k, v, position, row)
    return pages.k, pages.v


def case(rng, counts, mesh, pages_by):
    before = np.asarray([60, 7, 30, 0], np.int32)
    counts = np.asarray(counts, np.int32)
    if pages_by in ("slots", "packed table"):
        total = int(counts.sum()) + 3
        slots = jnp.asarray([2, 0, 3, 1], jnp.int32)
        batch = ragged.pack(
            jnp.zeros((total,), jnp.int32), counts, before, slots, jnp.ones((B,), bool),
            reach=before + counts, max_count=int(counts.max()),
        )  # fmt: skip
        pages_of, letters = slots[:, None], "BK.."
    else:
        batch = ragged.rectangle(jnp.zeros((B, int(counts.max())), jnp.int32), counts, before)
        pages_of, letters = None, "BK.."
    size = CAPACITY
    if pages_by in ("table", "packed table"):
        size, letters = 16, ".K.."
        pages_of = rng.permutation(B * 3).reshape(B, 3).astype(np.int32)
    T, P = batch.positions.shape[0], B * CAPACITY // size
    draw = [rng.normal(size=(T, heads, H)).astype(np.float32) for heads in (N, N, K, K)]
    held = [rng.normal(size=(P, K, size, H)).astype(np.float32) for _ in "kv"]
    ring = cache.Ring(CAPACITY, 32, SINKS)

    def attend(draw, held, pages_of, batch):
        q, far, k, v = draw
        return cached_attention.attend(
            q, k, v, far, cache.Pages(*held), ring, pages_of, batch, scale=0.1, softcap=None
        )

    with jax.default_device(jax.devices()[0]):
        expected = jax.jit(attend)(draw, held, pages_of, batch)
    mesh = sharding.make_mesh(mesh)
    held = jax.device_put(held, sharding.place(letters, mesh))
    cached_attention.platform = lambda: "tpu"
    with jax.set_mesh(mesh):
        out, pages = jax.jit(attend)(draw, held, pages_of, batch)
        placed = pages.k.sharding.is_equivalent_to(sharding.place(letters, mesh), 4)
    cached_attention.platform = lambda: "cpu"
    real = np.asarray(batch.positions) >= 0
    differences = [
        np.abs(np.asarray(out) - np.asarray(expected[0]))[real].max(),
        # every copy of every shard, not the first of them
        *(
            np.abs(np.asarray(part.data) - np.asarray(other)[part.index]).max()
            for one, other in ((pages.k, expected[1].k), (pages.v, expected[1].v))
            for part in one.addressable_shards
        ),
    ]
    return {"difference": float(max(differences)), "placed": bool(placed)}


def main(seed):
    cached_attention.ring_write = written_by_xla
    cached_attention.ragged_attention = functools.partial(ragged_attention, backend="xla")
    rng = np.random.default_rng(seed)
    for name, (counts, mesh, pages_by) in CASES.items():
        print(json.dumps({"case": name, **case(rng, counts, mesh, pages_by)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
