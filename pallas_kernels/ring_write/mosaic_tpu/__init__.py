"""Writing new keys and values into a paged ring cache on TPUs (Pallas, Mosaic), in place.

A slot is less than a tile of memory, so tiles are read, changed and written back: XLA's scatter
copies the whole cache into another layout and back for that (seen in the optimized HLO of prefill,
and of decode where heads have fewer than 128 elements). Here only the groups of slots with new
tokens move, several at a time in flight: decoding touches one group of each row.
"""

import math
from typing import Any

from pallas_kernels.ragged_attention.mosaic_tpu import why_not_pages
from pallas_kernels.ragged_attention.mosaic_tpu.softmax import LANES
from pallas_kernels.ring_write.mosaic_tpu.kernel import Facts
from pallas_kernels.ring_write.mosaic_tpu.launch import launch

FLIGHTS = 8  # groups on their way at a time: enough to hide the way to memory and back
IN_FLIGHT = 16 * 1024 * 1024  # and at most so many bytes


def ring_write(
    pages,
    new,
    table,
    starts,
    counts,
    lengths,
    *,
    capacity,
    sinks=0,
    max_count,
    interpret: Any = False,
):
    """Shapes as the package's function. NotImplementedError for what the kernel cannot take."""
    K, page_size, H = pages[0].shape[1:]
    if reason := why_not_pages(pages[0], table):
        raise NotImplementedError(f"the Mosaic TPU kernel {reason}")
    size = pages[0].dtype.itemsize
    rows = 32 // size  # of a tile
    turned, narrow = H < LANES, size == 1
    # groups of one row may not share a tile of scales, which is LANES slots; a single token has one
    several = LANES if narrow else math.gcd(page_size, 2 * rows)
    group = LANES if turned else rows if max_count == 1 else several
    row_pages = None if table is None else table.shape[1]
    flight = 6 * K * group * max(H, LANES) * size  # old, new and merged, k and v
    flights = max(2, min(FLIGHTS, IN_FLIGHT // flight))
    facts = Facts(group, flights, page_size, row_pages, capacity, sinks, turned, narrow)
    places = (table, starts, counts, lengths)
    return launch(pages, new, *places, facts=facts, interpret=interpret)
