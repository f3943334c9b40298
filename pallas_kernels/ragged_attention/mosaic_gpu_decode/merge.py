"""Merging the pieces of a pair that several workers have read."""

import functools

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import NEVER, Form, or_one, spread
from pallas_kernels.ragged_attention.mosaic_gpu_decode.rows import load, store_rows


def merge(form: Form, fields, worker, pieces, stats, out, ready):
    """The pair that ends in this worker's range and began before it."""
    row, head, number = fields[split.ROW], fields[split.HEAD], fields[split.BLOCK]
    count = fields[split.RANGE_FIELDS + split.COUNT]

    @pl.when((number > 0) & (number + fields[split.BLOCKS] >= count))
    def _all():
        before = worker - fields[split.PIECES_FROM]
        if ready is not None:
            pair = ready.at[row * form.K + head]
            plgpu.semaphore_wait(pair, before, decrement=False, memory_scope="gpu")
        padded, wide = form.piece
        vector = wide // 32
        layout = plgpu.Layout.TILED(
            plgpu.Tiling(((4, wide), (vector,))), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1
        )

        def add(i, carry):
            acc, m, weight = carry
            found = []
            for j in range(form.blocks.merged):
                which = i * form.blocks.merged + j
                there = which <= before
                at = jnp.minimum(fields[split.PIECES_FROM] + which, worker)
                kind = (at == worker).astype(jnp.int32)
                found.append(
                    (
                        load(stats.at[at, kind, 0], layout=layout.reduce(1))
                        + jnp.where(there, 0.0, NEVER),
                        load(stats.at[at, kind, 1], layout=layout.reduce(1)),
                        load(pieces.at[at, kind], layout=layout),
                    )
                )
            new = functools.reduce(jnp.maximum, [most for most, _, _ in found], m)
            kept = jnp.exp2(m - new)
            acc, weight = acc * spread(kept, acc.shape), weight * kept
            for most, part, values in found:
                share = jnp.exp2(most - new)
                acc += values * spread(share, acc.shape)
                weight += part * share
            return acc, new, weight

        def full(shape, value, layout):
            return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

        start = (
            full((padded, wide), 0.0, layout),
            full((padded,), NEVER, layout.reduce(1)),
            full((padded,), 0.0, layout.reduce(1)),
        )
        rounds = (before + form.blocks.merged) // form.blocks.merged
        acc, _, weight = lax.fori_loop(0, rounds, add, start)
        answer = (acc / spread(or_one(weight), acc.shape)).astype(out.dtype)
        mine = out.at[row, pl.ds(head * form.G, form.G)]
        store_rows(mine, answer, layout, interpret=form.interpret)
