"""The launch of the decode kernel, a program of its own: lowered once for all layers that share it."""

import functools
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.ragged_attention.mosaic_gpu_decode import cluster
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import Form
from pallas_kernels.ragged_attention.mosaic_gpu_decode.kernel import merge_after, read


@functools.partial(jax.jit, static_argnames=("form", "interpret"))
def launch(ranges, rows, q, k_pages, v_pages, given, *, form: Form, interpret):
    """ranges (None: in clusters) and rows as `split` has them, given: what else `read` takes ->
    (answer,), with the pages if form.new.
    """
    blocks, H = form.blocks, form.H
    ring = (blocks.warpgroups, blocks.stages)
    arrivals = form.copies * (2 if form.narrow else 1)
    stages: list[Any] = [
        *2 * [_tiles((*ring, blocks.slots, H), k_pages.dtype)],
        *2 * [plgpu.Barrier(num_arrivals=arrivals, num_barriers=ring)],
    ]
    if form.narrow:
        stages += 2 * [plgpu.SMEM((*ring, blocks.slots), jnp.float32)]
        stages += 2 * [_tiles((blocks.warpgroups, blocks.slots, H), q.dtype)]
    if form.new:
        k_pages, v_pages = jax.new_ref(k_pages), jax.new_ref(v_pages)
    how: dict[str, Any] = dict(form=form, stages=stages, interpret=interpret)
    if blocks.cluster:
        found = cluster.launch(rows, q, k_pages, v_pages, given, **how)
    else:
        found = _ranges(ranges, rows, q, k_pages, v_pages, given, **how)
    if form.new:
        return found, jax.freeze(k_pages), jax.freeze(v_pages)
    return (found,)


def _tiles(shape: tuple[int, ...], dtype):
    """Shared memory in the order that the copy engine and the tensor cores agree on."""
    size = jnp.dtype(dtype).itemsize
    swizzle = next(bytes for bytes in (128, 64, 32) if shape[-1] * size % bytes == 0)
    order = (plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=order)


def _ranges(ranges, rows, q, k_pages, v_pages, given, *, form: Form, stages: list, interpret):
    blocks = form.blocks
    out = jax.ShapeDtypeStruct((form.B, form.N, form.H), q.dtype)
    grid: dict[str, Any] = dict(
        grid=(blocks.processors,), grid_names=("processor",),
        num_threads=blocks.warpgroups, thread_name="wg", interpret=interpret,
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )  # fmt: skip
    found, pieces, stats = plgpu.kernel(
        functools.partial(read, form),
        out_type=(
            out,
            jax.ShapeDtypeStruct((blocks.workers, 2, *form.piece), jnp.float32),
            jax.ShapeDtypeStruct((blocks.workers, 2, 2, form.piece[0]), jnp.float32),
        ),
        scratch_types=stages,
        **grid,
    )(ranges, rows, q, k_pages, v_pages, *given)
    if interpret:
        # the interpreter runs one processor after another and has no semaphores: merge in a launch
        # of its own (what nothing has written is NaN there)
        merged = plgpu.kernel(functools.partial(merge_after, form), out_type=out, **grid)(
            ranges, pieces, stats
        )
        found = jnp.where(jnp.isnan(merged), found, merged)
    return found
