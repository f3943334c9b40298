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
from pallas_kernels.narrow import narrowed
from pallas_kernels.ragged_attention import ragged_attention
from pallas_kernels.ring import slot_of

B, N, K, H, CAPACITY, SINKS = 4, 8, 4, 128, 48, 3
CASES = {  # new tokens of each row, mesh, how rows find their pages, what these are made of
    "decode": ([1, 1, 0, 1], {"data": 2, "model": 2}, "own"),
    "prefill": ([5, 0, 3, 4], {"data": 2, "model": 2}, "own"),
    "shared pages": ([2, 1, 0, 2], {"data": 2, "model": 2}, "table"),
    "packed": ([7, 1, 1, 4], {"model": 4}, "slots"),
    "packed copies": ([7, 1, 1, 4], {"data": 2, "model": 2}, "slots"),
    "packed shared pages": ([7, 1, 0, 4], {"data": 2, "model": 2}, "packed table"),
    "int8 decode": ([1, 1, 0, 1], {"data": 2, "model": 2}, "own", "int8"),
    "int8 shared pages": ([2, 1, 0, 2], {"data": 2, "model": 2}, "table", "int8"),
    "fp8 packed copies": ([7, 1, 1, 4], {"data": 2, "model": 2}, "slots", "fp8"),
}


def written_by_xla(pages, new, table, starts, counts, lengths, *, capacity, sinks, max_count):
    T, rows = new[0].shape[0], counts.shape[0]
    table = jnp.arange(rows, dtype=jnp.int32)[:, None] if table is None else table
    inside = jnp.arange(T)[:, None] - starts
    mine = (inside >= 0) & (inside < counts)  # [T, rows]
    row = jnp.argmax(mine, axis=1).astype(jnp.int32)
    position = (lengths - counts)[row] + jnp.arange(T, dtype=jnp.int32) - starts[row]
    slot, size = slot_of(position, capacity, sinks), pages[0].shape[2]
    page = jnp.where(mine.any(axis=1), table[row, slot // size], pages[0].shape[0])
    return tuple(
        kept.at[page, :, slot % size].set(x, mode="drop")
        for kept, x in zip(pages, new, strict=True)
    )


def case(rng, counts, mesh, pages_by, dtype="float32"):
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
    held = cache.Pages(*(jnp.asarray(rng.normal(size=(P, K, size, H)), np.float32) for _ in "kv"))
    if dtype != "float32":
        (k, k_scale), (v, v_scale) = (narrowed(x, cache.KV_DTYPES[dtype]) for x in (held.k, held.v))
        held = cache.Pages(k, v, k_scale, v_scale)
    ring = cache.Ring(CAPACITY, 32, SINKS)

    def attend(draw, held, pages_of, batch):
        q, far, k, v = draw
        return cached_attention.attend(
            q, k, v, far, held, ring, pages_of, batch, scale=0.1, softcap=None
        )

    with jax.default_device(jax.devices()[0]):
        expected = jax.jit(attend)(draw, held, pages_of, batch)
    mesh = sharding.make_mesh(mesh)
    places = jax.tree.map(lambda x: sharding.place(letters[: x.ndim], mesh), held)
    held = jax.device_put(held, places)
    cached_attention.tpu = lambda: True
    with jax.set_mesh(mesh):
        out, pages = jax.jit(attend)(draw, held, pages_of, batch)
        found, wanted = jax.tree.leaves(pages), jax.tree.leaves(places)
        placed = all(
            x.sharding.is_equivalent_to(place, x.ndim)
            for x, place in zip(found, wanted, strict=True)
        )
    cached_attention.tpu = lambda: False
    real = np.asarray(batch.positions) >= 0
    differences = [
        np.abs(np.asarray(out) - np.asarray(expected[0]))[real].max(),
        # every copy of every shard, not the first of them
        *(
            np.abs(
                np.asarray(part.data, np.float32) - np.asarray(other, np.float32)[part.index]
            ).max()
            for one, other in zip(found, jax.tree.leaves(expected[1]), strict=True)
            for part in one.addressable_shards
        ),
    ]
    return {"difference": float(max(differences)), "placed": bool(placed)}


def main(seed):
    cached_attention.ring_write = written_by_xla
    cached_attention.ragged_attention = functools.partial(ragged_attention, backend="xla")
    rng = np.random.default_rng(seed)
    for name, given in CASES.items():
        print(json.dumps({"case": name, **case(rng, *given)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
