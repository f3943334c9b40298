"""Writing to the ring a token at a time in numpy: the specification. Slow, and meant to be read."""

import numpy as np


def ring_write(k_pages, v_pages, k, v, table, starts, counts, lengths, *, capacity, sinks=0):
    """Shapes as the package's function; concrete arrays only. Returns new arrays."""
    size = k_pages.shape[2]
    k_pages, v_pages, k, v = (np.array(x) for x in (k_pages, v_pages, k, v))
    for row, (start, count, length) in enumerate(zip(starts, counts, lengths, strict=True)):
        pages = [row] if table is None else list(np.asarray(table)[row])
        for i in range(int(count)):
            p = int(length) - int(count) + i
            slot = p if p < sinks else sinks + (p - sinks) % (capacity - sinks)
            k_pages[pages[slot // size], :, slot % size] = k[start + i]
            v_pages[pages[slot // size], :, slot % size] = v[start + i]
    return k_pages, v_pages
