"""Merging the pieces of a pair that several workers have read."""

import functools
from collections.abc import Callable

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import NEVER, Form, or_one, spread
from pallas_kernels.ragged_attention.mosaic_gpu_decode.rows import load, store_rows


def merge(form: Form, many, piece_of: Callable, target) -> None:
    """`many` pieces of a pair, in order, into its answer, target [G, H]. piece_of(i): where the i-th's
    rows, their largest scores and their sums of weights lie.
    """
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
            values, most, part = piece_of(jnp.minimum(which, many - 1))
            found.append(
                (
                    load(most, layout=layout.reduce(1)) + jnp.where(which < many, 0.0, NEVER),
                    load(part, layout=layout.reduce(1)),
                    load(values, layout=layout),
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
    rounds = (many + form.blocks.merged - 1) // form.blocks.merged
    acc, _, weight = lax.fori_loop(0, rounds, add, start)
    answer = (acc / spread(or_one(weight), acc.shape)).astype(target.dtype)
    store_rows(target, answer, layout, interpret=form.interpret)


def merge_ranges(form: Form, fields, worker, pieces, stats, out, ready) -> None:
    """The pair that ends in this worker's range and began before it."""
    row, head, number = fields[split.ROW], fields[split.HEAD], fields[split.BLOCK]
    count = fields[split.RANGE_FIELDS + split.COUNT]

    @pl.when((number > 0) & (number + fields[split.BLOCKS] >= count))
    def _all():
        before = worker - fields[split.PIECES_FROM]
        if ready is not None:
            pair = ready.at[row * form.K + head]
            plgpu.semaphore_wait(pair, before, decrement=False, memory_scope="gpu")

        def piece_of(i):
            at = fields[split.PIECES_FROM] + i
            kind = (at == worker).astype(jnp.int32)
            return pieces.at[at, kind], stats.at[at, kind, 0], stats.at[at, kind, 1]

        merge(form, before + 1, piece_of, out.at[row, pl.ds(head * form.G, form.G)])
