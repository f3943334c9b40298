"""Ragged paged ring attention, a token at a time in numpy: the specification. Slow, and meant to be
read.
"""

import numpy as np

from pallas_kernels.narrow import widened


def ragged_attention(
    q,
    k_pages,
    v_pages,
    table,
    starts,
    counts,
    lengths,
    *,
    capacity,
    scale,
    window=None,
    softcap=None,
    sinks=0,
    q_far=None,
    k_scale=None,
    v_scale=None,
):
    """Shapes as the package's function; concrete arrays only.

    Returns [T, N, H] float32 (padding is zero).
    """
    T, N, H = q.shape
    P, K, page_size, _ = k_pages.shape
    if k_scale is not None and v_scale is not None:
        pairs = (k_pages, k_scale), (v_pages, v_scale)
        k_pages, v_pages = (widened(x, np.float32) * scale[..., None] for x, scale in pairs)
    q, k_pages, v_pages = (np.asarray(x, np.float32) for x in (q, k_pages, v_pages))
    far = q if q_far is None else np.asarray(q_far, np.float32)
    out = np.zeros((T, N, H), np.float32)
    for row, (start, count, length) in enumerate(zip(starts, counts, lengths, strict=True)):
        pages = [row] if table is None else list(np.asarray(table)[row])
        for i in range(int(count)):
            at = int(length) - int(count) + i
            first = 0 if window is None else max(0, at - window + 1)
            seen = sorted(set(range(min(sinks, at + 1))) | set(range(first, at + 1)))
            for n in range(N):
                scores, values = [], []
                for p in seen:
                    slot = p if p < sinks else sinks + (p - sinks) % (capacity - sinks)
                    page, offset = pages[slot // page_size], slot % page_size
                    query = far if p < sinks else q
                    score = query[start + i, n] @ k_pages[page, n * K // N, offset] * scale
                    scores.append(score if softcap is None else softcap * np.tanh(score / softcap))
                    values.append(v_pages[page, n * K // N, offset])
                weights = np.exp(np.array(scores) - max(scores))
                out[start + i, n] = weights @ np.array(values) / weights.sum()
    return out
