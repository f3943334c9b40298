"""Decode form of ragged paged ring attention for Hopper: one query a row, split over the context.

Every warpgroup of a persistent grid is a worker with an equal stretch of the batch's blocks of slots
(`split`), which the bulk copy engine brings into the worker's own ring of stages; nothing is shared
and nobody waits until the end. The query heads of a kv head are rows of a 64-row tensor core tile
(so that a quad of lanes holds a whole row of scores and the softmax needs no shared memory); what
that wastes is idle anyway, since memory is three times slower. A pair (row, kv head) that one worker
reads whole goes straight to the output. One that is cut leaves float32 pieces; the worker with the
pair's end merges them, in order, once all are there: same inputs, same bits. A worker waits only for
workers before it, which wait for nobody before they are done reading.

A few short rows have a form of their own (`cluster`), with nothing to clear between calls and no way
through memory for the pieces; it has been checked in the interpreter and compiled for sm_90a, not
timed, and is off until it is ("cluster" in the tuned data; candidates and reasons in
`ragged_attention.bench`).

Pages of int8 come with their scales and are widened, exactly, on their way to the tensor cores: from
a stage through registers to a tile of bfloat16 in shared memory (16 loads, 32 permutes and as many
subtractions, 16 stores a thread for 64 keys of 128), scores and weights being multiplied by the
scales. Checked and compiled likewise, not timed, off ("narrow" in the tuned data).

What was measured on an H200 (8 kv heads, 32 query heads of 128, bfloat16; microseconds a call in a
loop of CUDA graphs over caches larger than the device's; terabytes of keys and values a second):

| rows x context | XLA | cuDNN | this, 1 x 6 (warpgroups x stages) | 2 x 2 | 2 x 3 | 3 x 2 |
|---|---|---|---|---|---|---|
| 64 x 4,096 | 558 (1.93) | 249 (4.32) | 255 (4.22) | 254 (4.23) | 251 (4.27) | 255 (4.21) |
| 32,768 and 63 x 512 | - | - | 82.3 (3.24) | 74.5 (3.58) | 75.5 (3.53) | 77.4 (3.44) |
| 64 x 1,024 | 148 (1.81) | - | - | 72.3 (3.71) | 73.7 (3.64) | - |
| 1 x 8,192 | 29.1 (1.16) | 16.5 (2.04) | 19.4 (1.73) | 16.5 (2.04) | 17.6 (1.91) | 18.4 (1.83) |
| 1 x 1,024 | 12.5 (0.34) | - | 7.7 (1 x 2) | 8.1 (0.52) | - | - |

2 x 2 won. About 8 microseconds a call are not streaming: clearing the semaphores (a launch), the
launch, the range and then the first block to arrive, the last block's products, and pieces to memory
and back. Merging 8, 18 or 36 pieces at a time makes no difference (1 x 8,192: 16.0, 16.0, 17.0), and
fewer barriers little (`unsafe_no_auto_barriers`: 16.0 for 16.5; the rows 64 x 1,024 and 1 x 1,024 were
measured with it). Patching the new token into the stage and its page inside the kernel cost 0.8 us for one row
of 1,024 and 7 for 64, against 1.8 and 8 for XLA's scatter before it; `Pair.begin` now starts the
softmax from it instead, which is right on the GPU but was not timed.

In the decode step of an 8B model, cache written by XLA's scatter before: 68.9 us a layer for 64 rows of
1,008 (3.83 TB/s), 6.2 us for one; 5.2 us for one row of the 1B model (heads of 64). Beside each call
stand a launch that clears the semaphores (0.95 us), four for the scatter (5.1 us together for one row)
and one for rope (1.0), and about 0.5 us between any two.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import (
    TILE,
    Blocks,
    Form,
    piece_shape,
)
from pallas_kernels.ragged_attention.mosaic_gpu_decode.launch import launch

SHARED_MEMORY = 226 * 1024


def fitting(blocks: Blocks, H: int, G: int, itemsize: int = 2) -> Blocks:
    """The same with as many warpgroups and stages as shared memory holds for heads of H elements of
    `itemsize` bytes, beside the pieces of G query heads a kv head that a cluster keeps there and the
    tiles that narrow elements are widened in.
    """
    stage = 2 * blocks.slots * (2 * H if itemsize > 1 else H + 4)
    for warpgroups in range(blocks.warpgroups, 0, -1):
        found = dataclasses.replace(blocks, warpgroups=warpgroups)
        kept = 4 * found.workers * math.prod(piece_shape(G, H)) if blocks.cluster else 0
        kept += 0 if itemsize > 1 else warpgroups * 2 * 2 * blocks.slots * H
        most = (SHARED_MEMORY - kept) // (stage * warpgroups)
        if most >= 2:
            return dataclasses.replace(found, stages=min(blocks.stages, most))
    return dataclasses.replace(blocks, warpgroups=1, stages=1)


def why_not(q, k_pages, table, *, blocks: Blocks) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    (_, N, H), (_, K, page_size, _) = q.shape, k_pages.shape
    narrow = k_pages.dtype == jnp.int8
    if q.dtype != jnp.bfloat16 or not (narrow or k_pages.dtype == jnp.bfloat16):
        return f"needs bfloat16 queries and pages, or int8 pages, got {q.dtype} and {k_pages.dtype}"
    if jax.__version_info__ < (0, 11):
        return f"needs jax 0.11 or newer, got {jax.__version__}"
    if H % 16 or not 64 <= H <= 256:
        return f"needs heads of 64 to 256, a multiple of 16, got {H}"
    if narrow and (H % 32 or page_size % 4 or (table is not None and page_size < 32)):
        return f"needs int8 pages of 32 slots or more, heads a multiple of 32, got {k_pages.shape}"
    if N // K > TILE:
        return f"needs at most {TILE} query heads a kv head, got {N // K}"
    size = blocks.slots
    if blocks.stages < 2:
        return f"needs shared memory for two stages beside a cluster's pieces, got {blocks}"
    if table is not None and page_size % size and (size % page_size or page_size % 8):
        return f"needs pages that divide {size} slots or are a multiple, got {page_size}"
    return None


def attend(
    q,
    k_pages,
    v_pages,
    table,
    counts,
    lengths,
    *,
    capacity,
    scale,
    window,
    softcap,
    sinks,
    q_far,
    blocks: Blocks,
    new: tuple[jax.Array, jax.Array] | None = None,
    scales: tuple[jax.Array, jax.Array] | None = None,
    interpret: Any = None,
):
    """q, q_far [B, N, H]: row b's query, the last of its lengths[b] positions -> [B, N, H], zeros for
    rows whose counts are 0. The rest as the package's function. new: the keys and values [B, K, H] of
    that position, not yet in the pages -> (answer, k_pages, v_pages with them), in place where the
    caller gives the pages up. scales: those of int8 pages, [P, K, page_size] float32.
    """
    (B, N, H), K = q.shape, k_pages.shape[1]
    form = Form(
        B=B, K=K, G=N // K, H=H, NB=-(-capacity // blocks.slots), page_size=k_pages.shape[2],
        capacity=capacity, scale=scale, softcap=softcap, sinks=sinks, paged=table is not None,
        far=q_far is not None, new=new is not None,
        narrow=scales is not None, blocks=blocks, interpret=bool(interpret),
    )  # fmt: skip
    rows = split.rows_of(
        lengths, counts, block=blocks.slots, capacity=capacity, window=window, sinks=sinks
    )
    ranges = None if blocks.cluster else split.ranges_of(rows, K, blocks.workers)
    if new is not None:
        q = jnp.concatenate([q, *new], axis=1)  # see `Pair.of`
    given = [x for x in (table, q_far, *(scales or ())) if x is not None]
    found = launch(ranges, rows, q, k_pages, v_pages, given, form=form, interpret=interpret)
    return found if new is not None else found[0]
