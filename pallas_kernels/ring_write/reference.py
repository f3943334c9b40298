"""Writing to the ring a token at a time in numpy: the specification. Slow, and meant to be read."""

import numpy as np


def ring_write(pages, new, table, starts, counts, lengths, *, capacity, sinks=0):
    """Shapes as the package's function; concrete arrays only. Returns new arrays."""
    size = pages[0].shape[2]
    pages, new = ([np.array(x) for x in arrays] for arrays in (pages, new))
    for row, (start, count, length) in enumerate(zip(starts, counts, lengths, strict=True)):
        names = [row] if table is None else list(np.asarray(table)[row])
        for i in range(int(count)):
            p = int(length) - int(count) + i
            slot = p if p < sinks else sinks + (p - sinks) % (capacity - sinks)
            for kept, x in zip(pages, new, strict=True):
                kept[names[slot // size], :, slot % size] = x[start + i]
    return tuple(pages)
