"""The paged ring KV cache: one structure for full attention, sliding windows and endless streams.

Memory is pages `[P, K, page_size, H]` per layer. A layer group (layers with the same window) has a
ring of `capacity` slots per sequence, spread over the pages that its table names; see
`pallas_kernels.ring` for the addressing. It knows nothing of requests or of who owns which page.

Pages may be narrow, int8 or fp8 (e4m3): every key and value vector then has a scale of its own, found
when it is written (`pallas_kernels.narrow`). Attention multiplies scores and weights by scales;
nothing is widened in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer import sharding
from jaxinfer.config import ModelConfig
from pallas_kernels.backend import platform
from pallas_kernels.narrow import FP8, TOPS, narrowed
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


KV_DTYPES = {
    "float32": jnp.dtype("float32"),
    "bfloat16": jnp.dtype("bfloat16"),
    "int8": jnp.dtype("int8"),
    "fp8": jnp.dtype("uint8"),  # its bits
}
KV_NAMES = {dtype: name for name, dtype in KV_DTYPES.items()}
KVDtype = Literal["float32", "bfloat16", "int8", "fp8"]


@struct.dataclass
class Pages:
    """One layer's keys and values, each [P, K, page_size, H]; where they are narrow, also the scale
    of each vector, [P, K, page_size] float32.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


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


def kv_dtype_of(dtype) -> np.dtype:
    """What pages are made of, by a name of KV_DTYPES or as any dtype; ValueError lists the names."""
    if isinstance(dtype, str) and dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype needs to be one of {', '.join(KV_DTYPES)}, got {dtype!r}")
    kept = KV_DTYPES[dtype] if isinstance(dtype, str) else np.dtype(dtype)
    return KV_DTYPES["fp8"] if kept == FP8 else kept


def vector_bytes(H: int, dtype) -> int:
    """What one key or value of H elements takes in pages of `dtype`, its scale included."""
    kept = kv_dtype_of(dtype)
    return H * kept.itemsize + (4 if kept in TOPS else 0)


def kept_as(pages: Pages, k: jax.Array, v: jax.Array) -> Pages:
    """New keys and values [..., K, H] in the form that `pages` have, scales [..., K]."""
    if pages.k_scale is None:
        return Pages(k=k.astype(pages.k.dtype), v=v.astype(pages.v.dtype))
    (k, k_scale), (v, v_scale) = (narrowed(x, pages.k.dtype) for x in (k, v))
    return Pages(k=k, v=v, k_scale=k_scale, v_scale=v_scale)


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

    dtype: a name of KV_DTYPES, or any; int8 and fp8 come with scales.
    num_kv_heads: as the parameters hold them (more than the config's where shards repeat heads).
    """
    K, H = num_kv_heads or config.num_kv_heads, config.head_dim
    dtype = kv_dtype_of(dtype)
    letters = "BK.." if page_size is None else ".K.."

    def pages(group):
        count, size = (
            (batch, page_slots(rings[group].capacity))
            if page_size is None
            else (num_pages[group], page_size)
        )

        def zeros(shape, dtype):
            place = sharding.place(letters[: len(shape)], mesh)
            return [jnp.zeros(shape, dtype, device=place) for _ in "kv"]

        k, v = zeros((count, K, size, H), dtype)
        scales = zeros((count, K, size), jnp.float32) if dtype in TOPS else (None, None)
        return Pages(k, v, *scales)

    def table(ring):
        if page_size is None:
            return None
        return jnp.zeros(
            (batch, ring.capacity // page_size), jnp.int32, device=sharding.place("..", mesh)
        )

    return Cache(
        layers=tuple(pages(group) for group in groups),
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
    new = kept_as(pages, k, v)
    if positions.size == 1 and platform() == "cpu":
        # one row becomes an update slice there, for which a loop copies the whole cache; two stay a
        # scatter in place
        axis = positions.ndim - 1
        new = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=axis), new)
        positions = jnp.concatenate([positions, jnp.full_like(positions, -1)], axis=axis)
        rows = None if rows is None else jnp.concatenate([rows, rows])
    size = pages.k.shape[2]
    slots = slot_of(jnp.maximum(positions, 0), ring.capacity, ring.sinks)
    if table is None:
        slots = jnp.where(positions >= 0, slots, size)  # past the end: dropped

        @jax.vmap
        def put_row(page, slot, new):
            return page.at[:, slot].set(jnp.swapaxes(new, 0, 1), mode="drop")

        return jax.tree.map(lambda page, new: put_row(page, slots, new), pages, new)
    page = jnp.where(positions >= 0, table[rows, slots // size], pages.k.shape[0])
    offset = slots % size
    return jax.tree.map(
        lambda kept, new: kept.at[page, :, offset].set(new, mode="drop"), pages, new
    )


def near(cache: Cache, span: int) -> Cache:
    """The cache with only its first `span` slots, each row's in a page of its own; see `put_back`."""

    def part(layer: int, pages: Pages) -> Pages:
        table, slots = cache.table(layer), min(span, cache.ring(layer).capacity)
        if table is None:
            return jax.tree.map(lambda x: x[:, :, :slots], pages)
        own = table[:, : -(-slots // pages.k.shape[2])]

        def gathered(x):
            x = jnp.swapaxes(x[own], 1, 2)  # [B, K, pages, page_size, ...]
            return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :slots]

        return jax.tree.map(gathered, pages)

    layers = tuple(part(i, pages) for i, pages in enumerate(cache.layers))
    return cache.replace(layers=layers, tables=(None,) * len(cache.tables))


def put_back(cache: Cache, part: Cache, most: int) -> Cache:
    """The cache after `part`, which began as `near` of it and has taken up to `most` tokens a row."""
    row = jnp.arange(cache.lengths.shape[0], dtype=jnp.int32)[:, None]
    positions = cache.lengths[:, None] + jnp.arange(most, dtype=jnp.int32)[None]

    def whole(layer: int, old: Pages, new: Pages) -> Pages:
        ring, table = cache.ring(layer), cache.table(layer)
        if table is None:
            origin = (0,) * old.k.ndim
            return jax.tree.map(
                lambda x, y: jax.lax.dynamic_update_slice(x, y, origin[: x.ndim]), old, new
            )
        slots, size = slot_of(positions, ring.capacity, ring.sinks), old.k.shape[2]
        page = jnp.where(positions < part.lengths[:, None], table[row, slots // size], len(old.k))
        return jax.tree.map(
            lambda x, y: x.at[page, :, slots % size].set(y[row, :, slots], mode="drop"), old, new
        )

    pairs = zip(cache.layers, part.layers, strict=True)
    layers = tuple(whole(i, old, new) for i, (old, new) in enumerate(pairs))
    return part.replace(layers=layers, tables=cache.tables)
