"""What one worker does: read its range of blocks, pair after pair, and merge what it must."""

import functools

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import (
    WGMMA,
    Form,
    given_of,
    or_one,
    spread,
    worker_of,
    wrapped,
)
from pallas_kernels.ragged_attention.mosaic_gpu_decode.merge import merge_ranges
from pallas_kernels.ragged_attention.mosaic_gpu_decode.pair import Pair
from pallas_kernels.ragged_attention.mosaic_gpu_decode.ring import Ring
from pallas_kernels.ragged_attention.mosaic_gpu_decode.rows import store_rows


def read(form: Form, ranges, rows, q, k_pages, v_pages, *rest):
    """The kernel. ranges [workers, 16], rows [B, 8], q as `Pair.of` has it; then the table, q_far and
    scales if there are any; out [B, N, H], pieces [workers, 2, ...] (0: of a pair that goes on
    after the range, 1: of one that began before), stats [workers, 2, 2 (max, sum), ...].
    """
    table, far, scales, rest = given_of(form, rest)
    out, pieces, stats, *scratch = rest
    wg, worker = worker_of(form)
    fields = [ranges[worker, i] for i in range(split.RANGE_FIELDS + split.LENGTH + 1)]
    total, shape = fields[split.BLOCKS], tuple(fields[split.RANGE_FIELDS :])
    here = (fields[split.ROW], fields[split.HEAD], fields[split.BLOCK], shape)
    ring = Ring.of(form, rows, table, (k_pages, v_pages), scales, scratch, wg)
    ready = None
    if not form.interpret:
        ready = pl.get_global(plgpu.SemaphoreType.REGULAR((form.B * form.K,)))

    ahead = here
    for step in range(form.blocks.stages):
        pl.when(step < total)(functools.partial(ring.bring, jnp.int32(step), ahead))
        ahead = ring.after(ahead)

    def pair(_, carry):
        done, here, ahead = carry
        row, head, number, shape = here
        many = jnp.minimum(total - done, shape[split.COUNT] - number)
        mine = pl.ds(head * form.G, form.G)
        block_of = Pair.of(form, ring, q, far, row, head, shape)
        query, start = block_of.begin(number == 0)

        def block(i, carry):
            *carry, ahead = carry
            first = wrapped(form, shape[split.FIRST] + number + i) * form.blocks.slots
            place = lax.rem(done + i, jnp.int32(form.blocks.stages))
            carry = block_of.see(query, place, first, *carry)
            step = done + i + form.blocks.stages
            pl.when(step < total)(functools.partial(ring.bring, step, ahead))
            return *carry, ring.after(ahead)

        acc, m, weight, ahead = lax.fori_loop(0, many, block, (*start, ahead))
        ends = number + many == shape[split.COUNT]
        whole = ends & (number == 0)

        @pl.when(whole)
        def _give():
            answer = (acc / spread(or_one(weight), acc.shape)).astype(q.dtype)
            store_rows(out.at[row, mine], answer, WGMMA, interpret=form.interpret)

        @pl.when(~whole)
        def _leave():
            kind = ends.astype(jnp.int32)
            part = functools.partial(store_rows, interpret=form.interpret)
            part(pieces.at[worker, kind], acc, WGMMA)
            part(stats.at[worker, kind, 0], m, WGMMA.reduce(1))
            part(stats.at[worker, kind, 1], weight, WGMMA.reduce(1))
            if ready is not None:
                there = ready.at[row * form.K + head]
                tell = functools.partial(plgpu.semaphore_signal, there, memory_scope="gpu")
                pl.when(~ends)(tell)

        return done + many, ring.onward(here, many), ahead

    lax.fori_loop(0, fields[split.PAIRS], pair, (jnp.int32(0), here, ahead))
    if ready is not None:
        merge_ranges(form, fields, worker, pieces, stats, out, ready)


def merge_after(form: Form, ranges, pieces, stats, out):
    _, worker = worker_of(form)
    fields = [ranges[worker, i] for i in range(split.RANGE_FIELDS + split.LENGTH + 1)]
    merge_ranges(form, fields, worker, pieces, stats, out, None)
