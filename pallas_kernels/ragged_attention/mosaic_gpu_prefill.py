"""Prefill form of ragged paged ring attention for Hopper: flash attention over a paged cache.

FlashAttention-3's schedule (Shah et al. 2024, section 3): two consumer warpgroups of 64 queries
each, taking turns on the tensor cores, and one producer that brings blocks of keys and values in
with the bulk copy engine. A tile of 128 queries belongs to one row and one query head; it walks the
blocks of *positions* that its queries may see, in order, and finds each block's page through the
table, so that a chunk's own keys and its cached prefix are the same thing. Blocks are masked only
where the diagonal, the window's edge or the row's end passes through them.
"""

import dataclasses
import functools
import math

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.backend import multiprocessors

NEVER = -1e30  # the score of a key that is not seen
LOWEST = -1e20  # where maxima start, above NEVER: a row that has seen nothing keeps weights of zero
LOG2_E = math.log2(math.e)
CONSUMERS = 2


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Block sizes: queries a consumer warpgroup, keys a block, blocks in flight.

    persistent: one worker a multiprocessor takes tile after tile, its ring of keys running on from
    one to the next, instead of a worker for each. It has run in the interpreter alone so far; the
    measured figures are those of a worker for each.
    """

    queries: int = 64
    keys: int = 128
    stages: int = 2
    persistent: bool = False

    @property
    def tile(self) -> int:
        return CONSUMERS * self.queries


def fitting(head_dim: int) -> Blocks:
    """The blocks that measured fastest for a head size."""
    return Blocks(keys=128 if head_dim <= 128 else 64)


def why_not(
    q, k_pages, table, *, capacity, window, sinks, q_far, blocks: Blocks | None = None
) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    H, page_size = q.shape[2], k_pages.shape[2]
    blocks = blocks or fitting(H)
    if q.dtype != jnp.bfloat16 or k_pages.dtype != jnp.bfloat16:
        return f"needs bfloat16 queries and pages, got {q.dtype} and {k_pages.dtype}"
    if H not in (64, 128, 256):
        return f"needs heads of 64, 128 or 256, got {H}"
    if sinks or q_far is not None:
        return "has no attention sinks"
    if window is not None and capacity % blocks.keys:
        return f"needs a ring of a multiple of {blocks.keys} slots, got {capacity}"
    if table is not None and page_size % blocks.keys and (blocks.keys % page_size or page_size % 8):
        return f"needs pages that divide {blocks.keys} slots or are a multiple, got {page_size}"
    return None


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
    max_count,
    span,
    packed,
    blocks: Blocks | None = None,
    interpret=None,
):
    """Shapes as the package's function. NotImplementedError for what the kernel cannot take."""
    T, N, H = q.shape
    B = lengths.shape[0]
    blocks = blocks or fitting(H)
    reason = why_not(
        q, k_pages, table, capacity=capacity, window=window, sinks=sinks, q_far=q_far, blocks=blocks
    )
    if reason:
        raise NotImplementedError(f"the Mosaic GPU prefill kernel {reason}; use backend='xla'")
    run = functools.partial(
        _kernel,
        k_pages=k_pages,
        v_pages=v_pages,
        table=table,
        capacity=capacity,
        scale=scale,
        window=window,
        softcap=softcap,
        blocks=blocks,
        interpret=interpret,
    )
    tile = blocks.tile
    if B == 1 or (not packed and max_count % tile == 0):  # tiles lie in T as they are
        each = -(-T // tile) if B == 1 else max_count // tile
        row = jnp.repeat(jnp.arange(B, dtype=jnp.int32), each)
        first = jnp.tile(jnp.arange(each, dtype=jnp.int32) * tile, B)
        info = _tiles(row, first, first < counts[row], counts, lengths)
        odd = -T % 8  # the copy engine counts rows in eights
        return run(jnp.pad(q, ((0, odd), (0, 0), (0, 0))) if odd else q, info=info)[:T]
    # rows take their tiles one after another; each tile gets a place of its own, so that it begins
    # at a multiple of eight
    tiles = (counts + tile - 1) // tile
    ends = jnp.cumsum(tiles)
    index = jnp.arange(min(T // tile + B, B * (-(-max_count // tile))), dtype=jnp.int32)
    row = jnp.minimum(jnp.searchsorted(ends, index, side="right"), B - 1).astype(jnp.int32)
    first = (index - (ends[row] - tiles[row])) * tile
    info = _tiles(row, first, index < ends[-1], counts, lengths)
    inside = first[:, None] + jnp.arange(tile, dtype=jnp.int32)[None]
    out = run(q[jnp.minimum(starts[row][:, None] + inside, T - 1).reshape(-1)], info=info)
    token = jnp.arange(T, dtype=jnp.int32)
    of = jnp.minimum(jnp.searchsorted(starts + counts, token, side="right"), B - 1)
    place = (ends[of] - tiles[of]) * tile + token - starts[of]
    return out[jnp.clip(place, 0, out.shape[0] - 1)]


def _tiles(row, first, real, counts, lengths):
    """[tiles, 3] int32: each tile's first position, its row's length (0: no work), its row."""
    position = lengths[row] - counts[row] + first
    return jnp.stack([position, jnp.where(real, lengths[row], 0), row], axis=1).astype(jnp.int32)


def _kernel(
    q, *, k_pages, v_pages, table, info, capacity, scale, window, softcap, blocks, interpret
):
    """q [tiles x tile or fewer, N, H], tile after tile -> the same shape."""
    N, H = q.shape[1:]
    K, page_size = k_pages.shape[1], k_pages.shape[2]
    bq, bk, stages = blocks.queries, blocks.keys, blocks.stages
    pieces = max(1, bk // page_size) if table is not None else 1
    tiles = info.shape[0]
    workers = min(multiprocessors(), tiles * N) if blocks.persistent else tiles * N
    own_output = H <= 128  # else the output leaves through the queries' buffer
    to_log2 = (scale if softcap is None else softcap) * LOG2_E

    def body(q_ref, k_ref, v_ref, info_ref, *rest):
        table_ref = rest[0] if table is not None else None
        out_ref, qs, os, ks, vs, k_full, v_full, q_full, k_free, v_free, q_free, turn = rest[-12:]
        os = os if own_output else qs
        wg, worker = lax.axis_index("wg"), lax.axis_index("worker")
        items = (tiles * N - worker + workers - 1) // workers

        def item(n):
            """Tile, head, and the walk low .. high over blocks of positions. Late tiles see the
            most keys: they go first, so that the last ones to end are short.
            """
            j = worker + n * workers
            tile, head = tiles - 1 - j // N, lax.rem(j, jnp.int32(N))
            position, length, row = (info_ref[tile, i] for i in range(3))
            low = jnp.int32(0) if window is None else jnp.maximum(position - (window - 1), 0) // bk
            high = (jnp.minimum(position + CONSUMERS * bq, length) + bk - 1) // bk
            return tile, head, position, length, row, low, jnp.where(length > 0, high, low)

        def take_turn():
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(turn)

        def consume(n, count):
            tile, head, position, length, row, low, high = item(n)
            here = position + wg * bq
            mine, place = qs.at[wg], pl.ds((tile * CONSUMERS + wg) * bq, bq)
            row_layout = plgpu.Layout.WGMMA.reduce(1)
            m = plgpu.layout_cast(jnp.full((bq,), LOWEST, jnp.float32), row_layout)
            total = plgpu.layout_cast(jnp.full((bq,), 0, jnp.float32), row_layout)
            acc = plgpu.layout_cast(jnp.full((bq, H), 0, jnp.float32), plgpu.Layout.WGMMA)

            def slot_of(step):
                return lax.rem(count + step - low, jnp.int32(stages))

            if not own_output:
                pl.when(wg == 1)(take_turn)
            plgpu.barrier_wait(q_full.at[wg])

            @pl.when(low < high)
            def _first():
                plgpu.barrier_wait(k_full.at[slot_of(low)])

            def block(step, carry, masked):
                acc, m, total = carry
                slot = slot_of(step)

                def scores_of(ref):
                    plgpu.wgmma(ref, mine, ks.at[slot].transpose((1, 0)))
                    take_turn()
                    return ref[...]

                s = pl.run_scoped(scores_of, plgpu.WGMMAAccumulatorRef((bq, bk), jnp.float32))
                plgpu.barrier_arrive(k_free.at[slot])
                if own_output:
                    pl.when(step + 1 == high)(lambda: plgpu.barrier_arrive(q_free))
                if softcap is not None:
                    s = jnp.tanh(s * (scale / softcap))
                if masked:
                    iota = functools.partial(
                        plgpu.broadcasted_iota, jnp.int32, (bq, bk), layout=plgpu.Layout.WGMMA
                    )
                    query, key = iota(0) + here, iota(1) + step * bk
                    seen = (key <= query) & (key < length)
                    if window is not None:
                        seen &= query - key < window
                    s = jnp.where(seen, s, NEVER)
                new = jnp.maximum(m, s.max(axis=1) * to_log2)
                alpha = jnp.exp2(m - new)
                p = jnp.exp2(s * to_log2 - lax.broadcast_in_dim(new, s.shape, [0]))
                acc *= lax.broadcast_in_dim(alpha, acc.shape, [0])
                total = total * alpha + p.sum(axis=1)
                p16 = p.astype(q.dtype)
                acc, total, new, p16 = lax.optimization_barrier((acc, total, new, p16))
                plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(v_full.at[slot])
                if masked:

                    @pl.when((step + 1) * bk > length)
                    def _clean():
                        _silence(vs.at[slot], length - step * bk)

                plgpu.barrier_wait(turn)

                more, following = step + 1 < high, slot_of(step + 1)

                def add(ref):
                    plgpu.wgmma(ref, p16, vs.at[slot])

                    @pl.when(more)
                    def _next():
                        plgpu.barrier_wait(k_full.at[following])

                acc = pl.run_state(add)(plgpu.WGMMAAccumulatorRef.init(acc))
                plgpu.barrier_arrive(v_free.at[slot])
                return acc, new, total

            clear = functools.partial(block, masked=False)
            edge = functools.partial(block, masked=True)
            carry, inside = (acc, m, total), low
            if window is not None:
                # up to the first block that this consumer's last query still sees whole
                inside = jnp.clip((jnp.maximum(here + bq - window, 0) + bk - 1) // bk, low, high)
                carry = lax.fori_loop(low, inside, edge, carry)
            # blocks wholly before this consumer's first query, and before the row's end
            diagonal = jnp.clip(jnp.minimum(here + 1, length) // bk, inside, high)
            carry = lax.fori_loop(inside, diagonal, clear, carry)
            acc, m, total = lax.fori_loop(diagonal, high, edge, carry)
            if own_output:
                pl.when(low == high)(lambda: plgpu.barrier_arrive(q_free))
            else:
                pl.when(wg == 0)(take_turn)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the tile before
            acc *= lax.broadcast_in_dim(1.0 / jnp.maximum(total, 1e-30), (bq, H), [0])
            os.at[wg][...] = acc.astype(q.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(os.at[wg], out_ref.at[place, head])
            if not own_output:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(q_free)
            return count + high - low

        def produce(n, count):
            tile, head, _, _, row, low, high = item(n)
            kv_head = lax.div(head, jnp.int32(N // K))

            def bring(step, source, target, full, free):
                slot = lax.rem(count + step - low, jnp.int32(stages))

                @pl.when(count + step - low >= stages)
                def _wait():
                    plgpu.barrier_wait(free.at[slot])

                at = step if window is None else lax.rem(step, jnp.int32(capacity // bk))
                for piece in range(pieces):
                    if table_ref is None:
                        page, offset = row, at * bk
                    elif pieces > 1:
                        page, offset = table_ref[row, at * pieces + piece], 0
                    else:
                        whole = page_size // bk  # blocks a page
                        page, offset = table_ref[row, at // whole], lax.rem(at, whole) * bk
                    rows = bk // pieces
                    plgpu.copy_gmem_to_smem(
                        source.at[page, kv_head, pl.ds(offset, rows)],
                        target.at[slot, pl.ds(piece * rows, rows)],
                        full.at[slot],
                    )

            def both(step):
                bring(step, k_ref, ks, k_full, k_free)
                bring(step, v_ref, vs, v_full, v_free)

            def queries():
                @pl.when(n > 0)
                def _wait():
                    plgpu.barrier_wait(q_free)

                for i in range(CONSUMERS):
                    place = pl.ds((tile * CONSUMERS + i) * bq, bq)
                    plgpu.copy_gmem_to_smem(q_ref.at[place, head], qs.at[i], q_full.at[i])

            # the next tile's first blocks come while the consumers end this one
            @pl.when(low < high)
            def _early():
                both(low)

            queries()
            pl.loop(jnp.minimum(low + 1, high), high)(both)
            return count + high - low

        @pl.when(wg < CONSUMERS)
        def _consumer():
            plgpu.set_max_registers(232, action="increase")
            # the second runs half a block behind the first, also from one tile to the next; where a
            # tile's queries stay in use to its end, they meet there
            if own_output:
                pl.when(wg == 1)(take_turn)
            lax.fori_loop(0, items, consume, jnp.int32(0))
            if own_output:
                pl.when(wg == 0)(take_turn)
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == CONSUMERS)
        def _producer():
            plgpu.set_max_registers(40, action="decrease")
            lax.fori_loop(0, items, produce, jnp.int32(0))

    def _silence(values, count):
        """Zero the rows of values [bk, H] from `count` on: slots past a row's end may hold NaN,
        which a weight of zero would not silence.
        """
        for part in range(0, bk, 64):
            rows = values.at[pl.ds(part, 64)]
            place = plgpu.broadcasted_iota(jnp.int32, (64, H), 0, layout=plgpu.Layout.WGMMA)
            kept = plgpu.layout_cast(rows[...], plgpu.Layout.WGMMA)
            rows[...] = jnp.where(place + part < count, kept, jnp.zeros_like(kept))
        plgpu.commit_smem()

    swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def buffers(count, rows):
        return plgpu.SMEM((count, rows, H), q.dtype, transforms=swizzled)

    operands = (q, k_pages, v_pages, info) + (() if table is None else (table,))
    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(workers,),
        grid_names=("worker",),
        num_threads=CONSUMERS + 1,
        thread_name="wg",
        scratch_types=[
            buffers(CONSUMERS, bq),
            buffers(CONSUMERS, bq if own_output else 8),
            buffers(stages, bk),
            buffers(stages, bk),
            plgpu.Barrier(num_arrivals=pieces, num_barriers=stages),
            plgpu.Barrier(num_arrivals=pieces, num_barriers=stages),
            plgpu.Barrier(num_barriers=CONSUMERS),
            plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=CONSUMERS),
            plgpu.Barrier(num_arrivals=CONSUMERS),
        ],
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*operands)
