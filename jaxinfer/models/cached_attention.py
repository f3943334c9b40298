"""New tokens against the ring cache: write their keys and values, then attend.

On TPUs both are kernels, which the partitioner cannot split: they run shard by shard. A kernel that
cannot take a layer's shapes leaves it to XLA. Where one kernel does both (`writes_inside`), it is
asked to.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer import cache as kv
from jaxinfer import sharding
from jaxinfer.ragged import Ragged
from pallas_kernels.backend import tpu
from pallas_kernels.ragged_attention import (
    attend_and_write,
    mosaic_tpu,
    ragged_attention,
    writes_inside,
)
from pallas_kernels.ring_write import ring_write


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_far: jax.Array | None,
    pages: kv.Pages,
    ring: kv.Ring,
    pages_of: jax.Array | None,
    batch: Ragged,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[jax.Array, kv.Pages]:
    """q, q_far [T, N, H] and k, v [T, K, H] of the batch -> ([T, N, H], the pages with k and v).

    pages_of: the page table of the batch's rows, None where row b owns page b.
    """
    rules: dict[str, Any] = dict(
        capacity=ring.capacity,
        window=ring.window,
        sinks=ring.sinks,
        max_count=batch.max_count,
        span=batch.span or ring.capacity,
        packed=batch.packed,
        scale=scale,
        softcap=softcap,
    )
    places = (pages_of, batch.starts, batch.counts, batch.lengths)
    if tpu() and mosaic_tpu.why_not(q, pages.k, pages_of) is None:
        return _on_shards(q, k, v, q_far, pages, places, rules)
    if writes_inside(q, pages.k, pages_of, max_count=batch.max_count):
        out, *held = attend_and_write(q, k, v, pages.k, pages.v, *places, q_far=q_far, **rules)
        return out, kv.Pages(*held)
    pages = _store(pages, ring, pages_of, k, v, batch)
    scales = dict(k_scale=pages.k_scale, v_scale=pages.v_scale)
    return ragged_attention(q, pages.k, pages.v, *places, q_far=q_far, **scales, **rules), pages


def _on_shards(q, k, v, q_far, pages, places, rules):
    table, starts, counts, lengths = places
    rows = "." if rules["packed"] else "B"
    # every copy of the model keeps the pages of its own rows, one each, or else all the pages that
    # rows share, and then each copy writes all rows
    single = table is None or (rules["packed"] and table.shape[1] == 1)
    writers, kept = (rows, "BK..") if single else (".", ".K..")
    # packed rows may lie anywhere: each copy takes those whose page it keeps
    taken = rules["packed"] and single and sharding.data_shards(sharding.in_force()) > 1
    one = {name: rules[name] for name in ("capacity", "sinks", "max_count")}

    def own(pages, table, starts, counts):
        """A shard's rows: their tables, where they lie in the tokens that it holds, their counts."""
        if taken:
            table = table - sharding.copy_index() * pages.shape[0]
            mine = (table >= 0) & (table < pages.shape[0])
            return jnp.where(mine, table, 0), starts, jnp.where(mine[:, 0], counts, 0)
        if not rules["packed"]:
            starts = jnp.arange(counts.shape[0], dtype=jnp.int32) * rules["max_count"]
        return table, starts, counts

    held, tree = jax.tree.flatten(pages)
    new = jax.tree.leaves(kv.kept_as(pages, k, v))
    size = len(held)

    def write(*arrays):
        kept, new, (*given, lengths) = arrays[:size], arrays[size : 2 * size], arrays[2 * size :]
        return ring_write(kept, new, *own(kept[0], *given), lengths, **one)

    def read(q, q_far, *arrays):
        kept, (*given, lengths) = jax.tree.unflatten(tree, arrays[:size]), arrays[size:]
        table, starts, counts = own(kept.k, *given)
        scales = dict(k_scale=kept.k_scale, v_scale=kept.v_scale)
        out = ragged_attention(
            q, kept.k, kept.v, table, starts, counts, lengths, q_far=q_far, **scales, **rules
        )
        if not taken:
            return out
        inside = jnp.arange(q.shape[0], dtype=jnp.int32)[:, None] - starts
        found = ((inside >= 0) & (inside < counts)).any(axis=1)
        return sharding.sum_over_copies(jnp.where(found[:, None, None], out, 0.0).astype(q.dtype))

    def letters(rows):
        return rows + ".", rows, rows, rows

    places_of_pages = tuple(kept[: x.ndim] for x in held)
    places_of_new = tuple((writers + "K.")[: x.ndim] for x in new)
    write = sharding.per_shard(
        write, (*places_of_pages, *places_of_new, *letters(writers)), places_of_pages
    )
    read = sharding.per_shard(
        read, (rows + "N.", rows + "N.", *places_of_pages, *letters(rows)), rows + "N."
    )
    held = write(*held, *new, table, starts, counts, lengths)
    return read(q, q_far, *held, table, starts, counts, lengths), jax.tree.unflatten(tree, held)


def _store(pages, ring, pages_of, k, v, batch):
    if pages_of is not None:
        return kv.write(pages, ring, pages_of, k, v, batch.positions, batch.rows)
    B, T = batch.lengths.shape[0], batch.max_count
    shape = (B, T, *k.shape[1:])
    return kv.write(
        pages, ring, None, k.reshape(shape), v.reshape(shape), batch.positions.reshape(B, T), None
    )
