"""The kernel's launch, a program of its own: traced and lowered once for all layers that share it."""

import functools
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp

from pallas_kernels.ragged_attention.mosaic_tpu.kernel import kernel
from pallas_kernels.ragged_attention.mosaic_tpu.softmax import LANES, Facts


@functools.partial(jax.jit, static_argnames=("facts", "interpret"))
def launch(q, q_far, pages, table, starts, counts, lengths, *, facts: Facts, interpret: Any):
    """Shapes as the package's function; pages: keys and values, and their scales if facts.narrow;
    q_far only if facts.far.
    """
    scalars = [starts, counts, lengths] + ([] if table is None else [table.reshape(-1)])
    if facts.turned:
        pages = [jnp.swapaxes(x, 2, 3) if x.ndim == 4 else x for x in pages]
    inputs = [q, *([q_far] if facts.far else []), *in_hbm(pages, interpret)]
    anywhere = pl.BlockSpec(memory_space=pltpu.HBM)
    scratch = _scratch(q, pages[0], facts)
    spare = (16 if facts.queries > 1 else 4) * 1024 * 1024  # scores and weights of a block
    call = pl.pallas_call(
        functools.partial(kernel, facts=facts, names=tuple(scratch), tabled=table is not None),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(1,),
            in_specs=[anywhere] * len(inputs),
            out_specs=anywhere,
            scratch_shapes=list(scratch.values()),
        ),
        # a tile's queries are read before its answers replace them
        input_output_aliases={len(scalars): 0},
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vector_bytes(scratch) + spare),
        interpret=interpret,
        name="ragged_attention",
    )
    return call(*(x.astype(jnp.int32) for x in scalars), *inputs)


def vector_bytes(scratch: dict) -> int:
    """What a kernel's arrays take of a core's vector memory, each in whole tiles."""
    held = 0
    for array in scratch.values():
        if len(array.shape) > 2:  # the others are semaphores and scalars
            *outer, rows, lanes = array.shape
            tile = 32 // array.dtype.itemsize
            rows, lanes = -(-rows // tile) * tile, -(-lanes // LANES) * LANES
            held += math.prod(outer) * rows * lanes * array.dtype.itemsize
    return held


def in_hbm(pages, interpret):
    """Keeps the compiler from copying pages into a core's own memory where they happen to fit."""
    if interpret:
        return pages
    return [pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in pages]


def _scratch(q, k_pages, facts: Facts) -> dict:
    """The kernel's memory by name. Pairs are double buffers."""
    N, H = q.shape[1:]
    K, G, Q = k_pages.shape[1], N // k_pages.shape[1], facts.queries
    rows = Q * G if Q > 1 else -(-G // 16) * 16
    padded = -(-N // 8) * 8
    tile = pltpu.VMEM((2, Q, N, H), q.dtype)
    places = (H, facts.walk.block) if facts.turned else (facts.walk.block, H)
    block = pltpu.VMEM((2, K, *places), k_pages.dtype)
    heads, column = pltpu.VMEM((K, rows, H), q.dtype), pltpu.VMEM((K, rows, LANES), jnp.float32)
    scratch = dict(q=tile, out=tile, k=block, v=block, heads=heads)
    if facts.far:
        scratch |= dict(far=tile, far_heads=heads)
    if facts.narrow:
        scale = pltpu.VMEM((2, K, facts.walk.block), jnp.float32)
        scratch |= dict(k_scale=scale, v_scale=scale)
    scratch |= dict(
        wide=pltpu.VMEM((-(-H // LANES), Q * padded, min(H, LANES)), jnp.float32),
        largest=column,
        total=column,
        sum=pltpu.VMEM((K, rows, H), jnp.float32),
        q_ready=pltpu.SemaphoreType.DMA((2,)),
        kv_ready=pltpu.SemaphoreType.DMA((2,)),
        out_ready=pltpu.SemaphoreType.DMA((2,)),
        pending=pltpu.SMEM((2,), jnp.int32),
    )
    return scratch
