"""The form for a few short rows: a cluster of multiprocessors for each pair of a row and a kv head.

A call for one row of 1,024 is a chain of waits, not a stream: the range to read (from memory), the
first block, its products, pieces and a signal to memory, the wait for it, pieces back. Here the
cluster's place says what to read; each warpgroup takes an equal stretch of the pair's blocks, and
leaves its piece in the shared memory of the cluster's first multiprocessor, which merges them in
order after one barrier of the cluster: no semaphores that something has to clear, no way through
memory, the same bits for the same inputs. The rest leave at the barrier.
"""

import functools
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import (
    WGMMA,
    Form,
    given_of,
    wrapped,
)
from pallas_kernels.ragged_attention.mosaic_gpu_decode.merge import merge
from pallas_kernels.ragged_attention.mosaic_gpu_decode.pair import Pair
from pallas_kernels.ragged_attention.mosaic_gpu_decode.ring import Ring
from pallas_kernels.ragged_attention.mosaic_gpu_decode.rows import store_rows


def read(form: Form, rows, q, k_pages, v_pages, *rest):
    """The kernel. rows [B, 8], q as `Pair.of` has it; then the table, q_far and scales if there are
    any; out [B, N, H]; pieces [workers, ...] and stats [workers, 2 (max, sum), ...] in shared memory
    (in the interpreter, which has no way to another's, [pairs, workers, ...] in memory).
    """
    table, far, scales, rest = given_of(form, rest)
    out, pieces, stats, *scratch = rest
    blocks, wg, pair = form.blocks, lax.axis_index("wg"), lax.axis_index("pair")
    worker = lax.axis_index("rank") * blocks.warpgroups + wg
    row, head = lax.div(pair, jnp.int32(form.K)), lax.rem(pair, jnp.int32(form.K))
    shape = tuple(rows[row, i] for i in range(split.LENGTH + 1))
    each = lax.div(shape[split.COUNT] + (blocks.workers - 1), jnp.int32(blocks.workers))
    begin = worker * each
    many = jnp.clip(shape[split.COUNT] - begin, 0, each)
    ring = Ring.of(form, rows, table, (k_pages, v_pages), scales, scratch, wg)

    def bring(step):
        pl.when(step < many)(lambda: ring.bring(step, (row, head, begin + step, shape)))

    for step in range(blocks.stages):
        bring(jnp.int32(step))
    mine = pl.ds(head * form.G, form.G)
    block_of = Pair.of(form, ring, q, far, row, head, shape)
    # the new position is for the last, who has the fewest blocks
    query, start = block_of.begin(worker == blocks.workers - 1)

    def block(i, carry):
        first = wrapped(form, shape[split.FIRST] + begin + i) * blocks.slots
        carry = block_of.see(query, lax.rem(i, jnp.int32(blocks.stages)), first, *carry)
        bring(i + blocks.stages)
        return carry

    acc, m, weight = lax.fori_loop(0, many, block, start)
    if form.interpret:
        pieces, stats = pieces.at[pair], stats.at[pair]
    leave = functools.partial(store_rows, interpret=form.interpret, first_of_cluster=True)
    leave(pieces.at[worker], acc, WGMMA)
    leave(stats.at[worker, 0], m, WGMMA.reduce(1))
    leave(stats.at[worker, 1], weight, WGMMA.reduce(1))
    if not form.interpret:
        meet()
        pl.when(worker == 0)(lambda: merge_pair(form, pieces, stats, out.at[row, mine]))


def merge_pair(form: Form, pieces, stats, target):
    def piece_of(i):
        return pieces.at[i], stats.at[i, 0], stats.at[i, 1]

    merge(form, jnp.int32(form.blocks.workers), piece_of, target)


def merge_after(form: Form, pieces, stats, out):
    pair = lax.axis_index("pair")
    row, head = lax.div(pair, jnp.int32(form.K)), lax.rem(pair, jnp.int32(form.K))
    target = out.at[row, pl.ds(head * form.G, form.G)]
    pl.when(lax.axis_index("wg") == 0)(
        lambda: merge_pair(form, pieces.at[pair], stats.at[pair], target)
    )


def meet() -> None:
    """All threads of the cluster: what one wrote before, all see after."""

    def emit(_):
        for do in ("arrive.release", "wait.acquire"):
            llvm.inline_asm(
                ir.Type.parse("!llvm.void"),
                [],
                f"barrier.cluster.{do};",
                "~{memory}",
                has_side_effects=True,
            )

    inlined: Any = plgpu.inline_mgpu()(emit)
    inlined()


def launch(rows, q, k_pages, v_pages, given, *, form: Form, stages: list, interpret):
    """The program: arguments and answer as that of `launch.launch`, pages as they are to be written."""
    blocks = form.blocks
    out = jax.ShapeDtypeStruct((form.B, form.N, form.H), q.dtype)
    held = (blocks.workers, *form.piece), (blocks.workers, 2, form.piece[0])
    grid: dict[str, Any] = dict(
        grid=(form.B * form.K,), grid_names=("pair",),
        num_threads=blocks.warpgroups, thread_name="wg", interpret=interpret,
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )  # fmt: skip
    kernel = functools.partial(
        plgpu.kernel,
        functools.partial(read, form),
        cluster=(blocks.cluster,),
        cluster_names=("rank",),
    )
    if not interpret:
        pieces = [plgpu.SMEM(shape, jnp.float32) for shape in held]
        found = kernel(out_type=out, scratch_types=[*pieces, *stages], **grid)
        return found(rows, q, k_pages, v_pages, *given)
    pieces = [jax.ShapeDtypeStruct((form.B * form.K, *shape), jnp.float32) for shape in held]
    _, *pieces = kernel(out_type=(out, *pieces), scratch_types=stages, **grid)(
        rows, q, k_pages, v_pages, *given
    )
    return plgpu.kernel(functools.partial(merge_after, form), out_type=out, **grid)(*pieces)
