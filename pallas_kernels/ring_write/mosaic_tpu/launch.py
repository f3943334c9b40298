"""The kernel's launch, a program of its own: traced and lowered once for all layers that share it."""

import functools
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp

from pallas_kernels.ragged_attention.mosaic_tpu.launch import in_hbm, vector_bytes
from pallas_kernels.ragged_attention.mosaic_tpu.softmax import LANES
from pallas_kernels.ring_write.mosaic_tpu.kernel import Facts, kernel


@functools.partial(jax.jit, static_argnames=("facts", "interpret"))
def launch(k_pages, v_pages, k, v, table, starts, counts, lengths, *, facts: Facts, interpret: Any):
    """Shapes as the package's function."""
    if facts.turned:
        k_pages, v_pages = jnp.swapaxes(k_pages, 2, 3), jnp.swapaxes(v_pages, 2, 3)
    K, H = k.shape[1:]
    tile = (K, H, facts.group) if facts.turned else (K, facts.group, H)
    old = pltpu.VMEM((facts.flights, *tile), k_pages.dtype)
    new = pltpu.VMEM((facts.flights, facts.group, K, H), k_pages.dtype)
    wide = pltpu.VMEM((-(-H // LANES), facts.group * (-(-K // 8) * 8), min(H, LANES)), jnp.float32)
    arrivals = pltpu.SemaphoreType.DMA((facts.flights,))
    scratch = dict(old_k=old, old_v=old, out_k=old, out_v=old, new_k=new, new_v=new, wide=wide)
    scratch |= dict(old_ready=arrivals, new_ready=arrivals, out_ready=arrivals)
    scalars = [starts, counts, lengths] + ([] if table is None else [table.reshape(-1)])
    names = ["starts", "counts", "lengths"] + ([] if table is None else ["table"])
    names += ["k_in", "v_in", "k", "v", "k_out", "v_out", *scratch]
    anywhere = pl.BlockSpec(memory_space=pltpu.HBM)
    first = len(scalars)
    k_pages, v_pages = pl.pallas_call(
        functools.partial(kernel, facts=facts, names=names),
        out_shape=[pltpu.HBM(k_pages.shape, k_pages.dtype)] * 2,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=first,
            grid=(1,),
            in_specs=[anywhere] * 4,
            out_specs=[anywhere] * 2,
            scratch_shapes=list(scratch.values()),
        ),
        input_output_aliases={first: 0, first + 1: 1},
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=vector_bytes(scratch) + 4 * 1024 * 1024
        ),
        interpret=interpret,
        name="ring_write",
    )(
        *(x.astype(jnp.int32) for x in scalars),
        *in_hbm(k_pages, v_pages, interpret),
        *(x.astype(k_pages.dtype) for x in (k, v)),
    )
    if facts.turned:
        k_pages, v_pages = jnp.swapaxes(k_pages, 2, 3), jnp.swapaxes(v_pages, 2, 3)
    return k_pages, v_pages
