"""The paged ring KV cache: one structure for full attention, sliding windows and endless streams.

Memory is pages `[P, K, page_size, H]` per layer. A layer group (layers with the same window) has a
ring of `capacity` slots per sequence, spread over the pages that its table names; see
`pallas_kernels.ring` for the addressing. It knows nothing of requests or of who owns which page.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer import sharding
from jaxinfer.config import ModelConfig
from pallas_kernels.backend import platform
from pallas_kernels.ragged_attention import page_slots
from pallas_kernels.ring import slot_of


@dataclass(frozen=True)
class Ring:
    """How the layers of one group keep positions.

    capacity: slots per sequence. window: as the layers' config, or the stream's. sinks: first
    positions kept for good.
    """

    capacity: int
    window: int | None = None
    sinks: int = 0

    def __post_init__(self):
        if self.capacity <= self.sinks:
            raise ValueError(
                f"a ring needs more slots than sinks, got {self.capacity=}, {self.sinks=}"
            )


@struct.dataclass
class Pages:
    """One layer's keys and values, each [P, K, page_size, H]."""

    k: jax.Array
    v: jax.Array


class Cache(struct.PyTreeNode):
    """layers: one `Pages` a layer. tables: per group, [B, pages a sequence] int32, or None (row b
    owns page b). lengths [B] int32: positions written. rings, groups: per group its ring; per layer
    its group.
    """

    layers: tuple[Pages, ...]
    tables: tuple[jax.Array | None, ...]
    lengths: jax.Array
    rings: tuple[Ring, ...] = struct.field(pytree_node=False)
    groups: tuple[int, ...] = struct.field(pytree_node=False)

    def ring(self, layer: int) -> Ring:
        return self.rings[self.groups[layer]]

    def table(self, layer: int) -> jax.Array | None:
        return self.tables[self.groups[layer]]


def plan_rings(
    config: ModelConfig,
    max_length: int,
    *,
    max_chunk: int,
    page_size: int | None = None,
    stream_window: int | None = None,
    sinks: int = 0,
) -> tuple[tuple[Ring, ...], tuple[int, ...]]:
    """The rings that hold sequences of up to `max_length` positions, written at most `max_chunk` at
    a time.

    Full attention gets max_length slots and never wraps; a window of w gets min(max_length, w +
    max_chunk - 1) and wraps. With `stream_window`, full-attention layers keep `sinks` first
    positions and the latest stream_window, for streams of any length (StreamingLLM, Xiao et al.
    2023, section 3.2). Capacities round up to whole pages.
    Returns (rings, the group of each layer).
    """
    if stream_window is not None and config.learned_positions:
        raise ValueError(
            "a stream without end needs rotary or no positions, got learned positions; drop stream_window"
        )
    rings: list[Ring] = []
    groups: list[int] = []
    for layer in config.layers:
        window, kept = layer.window, 0
        if stream_window is not None and (window is None or window > stream_window):
            window, kept = stream_window, sinks
        capacity = max_length if window is None else min(max_length, kept + window + max_chunk - 1)
        capacity = max(capacity, kept + 1)
        if page_size is not None:
            capacity = -(-capacity // page_size) * page_size
        ring = Ring(capacity, window, kept)
        if ring not in rings:
            rings.append(ring)
        groups.append(rings.index(ring))
    return tuple(rings), tuple(groups)


def init_cache(
    config: ModelConfig,
    rings: Sequence[Ring],
    groups: Sequence[int],
    batch: int,
    dtype,
    *,
    num_kv_heads: int | None = None,
    page_size: int | None = None,
    num_pages: Sequence[int] = (),
    mesh=None,
) -> Cache:
    """An empty cache for `batch` sequences: one page each, or `num_pages` pages per group shared
    through tables.

    num_kv_heads: as the parameters hold them (more than the config's where shards repeat heads).
    """
    K, H = num_kv_heads or config.num_kv_heads, config.head_dim
    letters = "BK.." if page_size is None else ".K.."
    place = sharding.place(letters, mesh)

    def zeros(group):
        pages, size = (
            (batch, page_slots(rings[group].capacity))
            if page_size is None
            else (num_pages[group], page_size)
        )
        return jnp.zeros((pages, K, size, H), dtype, device=place)

    def table(ring):
        if page_size is None:
            return None
        return jnp.zeros(
            (batch, ring.capacity // page_size), jnp.int32, device=sharding.place("..", mesh)
        )

    return Cache(
        layers=tuple(Pages(k=zeros(g), v=zeros(g)) for g in groups),
        tables=tuple(table(ring) for ring in rings),
        lengths=jnp.zeros(
            (batch,), jnp.int32, device=sharding.place("B" if page_size is None else ".", mesh)
        ),
        rings=tuple(rings),
        groups=tuple(groups),
    )


def write(
    pages: Pages,
    ring: Ring,
    table: jax.Array | None,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    rows: jax.Array | None,
) -> Pages:
    """Put the keys and values of new tokens into their slots; negative positions write nothing.

    table None: k, v [B, T, K, H] and positions [B, T], each row into its own page. Otherwise
    packed: k, v [T, K, H], positions [T] and rows [T], the table row of each token.
    """
    if positions.size == 1 and platform() == "cpu":
        # one row becomes an update slice there, for which a loop copies the whole cache; two stay a
        # scatter in place
        k, v, positions = (
            jnp.concatenate([x, jnp.full_like(x, -1)], axis=positions.ndim - 1)
            for x in (k, v, positions)
        )
        rows = None if rows is None else jnp.concatenate([rows, rows])
    size = pages.k.shape[2]
    slots = slot_of(jnp.maximum(positions, 0), ring.capacity, ring.sinks)
    if table is None:
        slots = jnp.where(positions >= 0, slots, size)  # past the end: dropped

        @jax.vmap
        def put_row(page, slot, new):
            return page.at[:, slot].set(jnp.swapaxes(new, 0, 1).astype(page.dtype), mode="drop")

        return Pages(k=put_row(pages.k, slots, k), v=put_row(pages.v, slots, v))
    page = jnp.where(positions >= 0, table[rows, slots // size], pages.k.shape[0])
    offset = slots % size

    def put(pages, new):
        return pages.at[page, :, offset].set(new.astype(pages.dtype), mode="drop")

    return Pages(k=put(pages.k, k), v=put(pages.v, v))


def near(cache: Cache, span: int) -> Cache:
    """The cache with only its first `span` slots, where rows own whole pages; see `put_back`."""
    if any(table is not None for table in cache.tables):
        return cache
    return cache.replace(layers=jax.tree.map(lambda x: x[:, :, :span], cache.layers))


def put_back(cache: Cache, part: Cache) -> Cache:
    """The cache after `part`, which began as `near` of it."""

    def whole(old, new):
        return (
            jax.lax.dynamic_update_slice(old, new, (0, 0, 0, 0)) if old.shape != new.shape else new
        )

    return part.replace(layers=jax.tree.map(whole, cache.layers, part.layers))
