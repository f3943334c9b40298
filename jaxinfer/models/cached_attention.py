"""New tokens against the ring cache: write their keys and values, then attend.

On TPUs both are kernels, which the partitioner cannot split: they run shard by shard. A kernel that
cannot take a layer's shapes leaves it to XLA.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer import cache as kv
from jaxinfer import sharding
from jaxinfer.ragged import Ragged
from pallas_kernels.backend import platform
from pallas_kernels.ragged_attention import mosaic_tpu, ragged_attention
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
    if _shard_by_shard(q, pages, pages_of, batch):
        return _on_shards(q, k, v, q_far, pages, places, rules)
    pages = _store(pages, ring, pages_of, k, v, batch)
    return ragged_attention(q, pages.k, pages.v, *places, q_far=q_far, **rules), pages


def _shard_by_shard(q, pages, pages_of, batch) -> bool:
    if platform() != "tpu" or mosaic_tpu.why_not(q, pages.k, pages_of) is not None:
        return False
    # packed rows may use any page, wherever its copy of the model keeps it
    return not batch.packed or sharding.data_shards(sharding.in_force()) == 1


def _on_shards(q, k, v, q_far, pages, places, rules):
    table, starts, counts, lengths = places
    rows = "." if rules["packed"] else "B"
    # pages that rows share are whole on every copy of the model, so that each copy writes all rows
    writers, kept = (rows, "BK..") if table is None else (".", ".K..")
    one = {name: rules[name] for name in ("capacity", "sinks", "max_count")}

    def own(starts, counts):
        """Where a shard's rows lie in the tokens that it holds."""
        local = jnp.arange(counts.shape[0], dtype=jnp.int32) * rules["max_count"]
        return starts if rules["packed"] else local

    def write(k_pages, v_pages, k, v, table, starts, counts, lengths):
        starts = own(starts, counts)
        return ring_write(k_pages, v_pages, k, v, table, starts, counts, lengths, **one)

    def read(q, q_far, k_pages, v_pages, table, starts, counts, lengths):
        starts = own(starts, counts)
        return ragged_attention(
            q, k_pages, v_pages, table, starts, counts, lengths, q_far=q_far, **rules
        )

    def letters(rows):
        return rows + ".", rows, rows, rows

    write = sharding.per_shard(
        write, (kept, kept, writers + "K.", writers + "K.", *letters(writers)), (kept, kept)
    )
    read = sharding.per_shard(
        read, (rows + "N.", rows + "N.", kept, kept, *letters(rows)), rows + "N."
    )
    k_pages, v_pages = write(pages.k, pages.v, k, v, table, starts, counts, lengths)
    found = read(q, q_far, k_pages, v_pages, table, starts, counts, lengths)
    return found, kv.Pages(k=k_pages, v=v_pages)


def _store(pages, ring, pages_of, k, v, batch):
    if pages_of is not None:
        return kv.write(pages, ring, pages_of, k, v, batch.positions, batch.rows)
    B, T = batch.lengths.shape[0], batch.max_count
    shape = (B, T, *k.shape[1:])
    return kv.write(
        pages, ring, None, k.reshape(shape), v.reshape(shape), batch.positions.reshape(B, T), None
    )
