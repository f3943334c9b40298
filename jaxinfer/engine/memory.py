"""What follows from a model and a device's memory: limits, and how many pages each group of layers
gets.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxinfer import sharding
from jaxinfer.cache import Ring, vector_bytes
from jaxinfer.config import ModelConfig
from jaxinfer.models import attention, decoder
from jaxinfer.pages import Group
from jaxinfer.scheduler import Limits

LARGEST_POOL = 2**24  # pages; where memory would hold more, page tables are what is too small


def limits_for(limits: Limits, config: ModelConfig, rings: Sequence[Ring]) -> Limits:
    """The limits with what follows from the model filled in."""
    ropes = [layer.rope for layer in config.layers if layer.rope is not None]
    by_length = {rope.scaling: rope.original_max_position for rope in ropes}
    wraps = [
        ring for ring in rings if ring.window is not None and ring.capacity < limits.max_length
    ]
    spare = [ring.capacity - (ring.window or 0) - ring.sinks for ring in wraps]
    return dataclasses.replace(
        limits,
        rope_switch=by_length.get("longrope", 0),
        rope_follows="dynamic" in by_length,
        reuse=limits.reuse and "dynamic" not in by_length,
        rollback=max(0, min(spare, default=limits.max_length)),
    )


def device_memory(mesh) -> tuple[int, int] | None:
    """(bytes that a device may use, bytes in use), the tightest device's; None where the platform
    does not say (CPU).
    """
    devices = jax.devices()[:1] if mesh is None else mesh.local_devices
    stats = [device.memory_stats() for device in devices]
    if not all(s and "bytes_limit" in s and "bytes_in_use" in s for s in stats):
        return None
    tightest = min(stats, key=lambda s: s["bytes_limit"] - s["bytes_in_use"])
    return tightest["bytes_limit"], tightest["bytes_in_use"]


def page_bytes(
    groups: Sequence[int], heads: int, head_dim: int, page_size: int, dtype
) -> list[int]:
    """The bytes of a page of each group on one device: keys and values of its layers, and their
    scales.

    groups: the group of each layer. heads: those that one device holds, or all.
    """
    one = 2 * heads * page_size * vector_bytes(head_dim, dtype)
    return [one * groups.count(group) for group in range(max(groups) + 1)]


def plan_groups(
    rings: Sequence[Ring], limits: Limits, page_size: int, num_pages: int | None
) -> tuple[Group, ...]:
    """The groups of pages. num_pages: of a group that looks back over everything (None: what all
    slots need at their longest); one with a window gets what its slots need at most and as much
    again, so that what it let go can still be found. ValueError where an endless stream could not
    run to its end.
    """
    groups = []
    most_at_once = max(limits.chunk, limits.decode_steps)
    for ring in rings:
        columns = ring.capacity // page_size
        fixed, needed = ring.sinks > 0, columns
        if ring.window is not None and not fixed:
            needed = min(columns, (ring.window + most_at_once - 3) // page_size + 3)
        pages = limits.slots * needed
        if num_pages is not None:
            spare = 1 if fixed else 2
            pages = num_pages if ring.window is None else min(num_pages, spare * pages)
        if limits.endless and pages < needed:
            raise ValueError(
                f"a stream without end needs num_pages of at least {needed}, got {num_pages}; raise "
                "it, or lower stream_window or chunk"
            )
        groups.append(Group(pages, columns, ring.window, fixed))
    return tuple(groups)


def pages_that_fit(
    rings: Sequence[Ring], limits: Limits, page_size: int, bytes_per_page: Sequence[int], room: int
) -> int:
    """The most `num_pages` whose groups take at most `room` bytes; MemoryError where not even one
    sequence of max_length fits.
    """

    def taken(num_pages: int) -> int:
        groups = plan_groups(rings, limits, page_size, num_pages)
        return sum(group.pages * each for group, each in zip(groups, bytes_per_page, strict=True))

    least = max(ring.capacity // page_size for ring in rings)
    if taken(least) > room:
        raise MemoryError(
            f"the cache of one sequence of {limits.max_length} positions needs {taken(least)} bytes, "
            f"got {room}; lower max_length or chunk, raise memory_fraction, or use more devices"
        )
    low, high = least, LARGEST_POOL
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if taken(middle) <= room else (low, middle - 1)
    return low


def pages_within(
    fraction: float,
    params: decoder.Params,
    config: ModelConfig,
    rings: Sequence[Ring],
    layer_groups: Sequence[int],
    limits: Limits,
    page_size: int,
    kv_dtype: np.dtype,
    mesh,
) -> int | None:
    """The most `num_pages` within a fraction of the device's memory, beside what is already there;
    None where the device does not say.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"memory_fraction needs to be above 0 and at most 1, got {fraction}")
    memory = device_memory(mesh)
    if memory is None:
        return None
    limit, used = memory
    heads = attention.held_kv_heads(config, params.shards)
    mine = -(-heads // sharding.model_shards(mesh))
    each = page_bytes(layer_groups, mine, config.head_dim, page_size, kv_dtype)
    return pages_that_fit(rings, limits, page_size, each, int(limit * fraction) - used)
