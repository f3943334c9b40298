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
def launch(pages, new, table, starts, counts, lengths, *, facts: Facts, interpret: Any):
    """Shapes as the package's function."""
    pages = _turned(pages, facts)
    # one token's scales are a row of a tile of its own, which can be copied alone
    new = [
        x.astype(kept.dtype) if x.ndim == 3 else x[:, None]
        for x, kept in zip(new, pages, strict=True)
    ]
    K, H = new[0].shape[1:]
    scratch = _scratch(pages[0].dtype, K, H, facts)
    scalars = [starts, counts, lengths] + ([] if table is None else [table.reshape(-1)])
    names = ["starts", "counts", "lengths"] + ([] if table is None else ["table"])
    names += [f"{stem}_{kind}" for stem in ("in", "tokens", "into") for kind in facts.kinds]
    anywhere = pl.BlockSpec(memory_space=pltpu.HBM)
    first, count = len(scalars), len(pages)
    found = pl.pallas_call(
        functools.partial(kernel, facts=facts, names=[*names, *scratch]),
        out_shape=[pltpu.HBM(x.shape, x.dtype) for x in pages],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=first,
            grid=(1,),
            in_specs=[anywhere] * (2 * count),
            out_specs=[anywhere] * count,
            scratch_shapes=list(scratch.values()),
        ),
        input_output_aliases={first + i: i for i in range(count)},
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=vector_bytes(scratch) + 4 * 1024 * 1024
        ),
        interpret=interpret,
        name="ring_write",
    )(*(x.astype(jnp.int32) for x in scalars), *in_hbm(pages, interpret), *new)
    return tuple(_turned(found, facts))


def _turned(pages, facts: Facts) -> list[jax.Array]:
    return [jnp.swapaxes(x, 2, 3) if facts.turned and x.ndim == 4 else x for x in pages]


def _scratch(dtype, K: int, H: int, facts: Facts) -> dict:
    """The kernel's memory by name."""
    tile = (K, H, facts.group) if facts.turned else (K, facts.group, H)
    old = pltpu.VMEM((facts.flights, *tile), dtype)
    new = pltpu.VMEM((facts.flights, facts.group, K, H), dtype)
    wide = pltpu.VMEM((-(-H // LANES), facts.group * (-(-K // 8) * 8), min(H, LANES)), jnp.float32)
    arrivals = pltpu.SemaphoreType.DMA((facts.flights,))
    scratch = dict(old_k=old, old_v=old, out_k=old, out_v=old, new_k=new, new_v=new, wide=wide)
    if facts.narrow:
        old = pltpu.VMEM((facts.flights, K, LANES), jnp.float32)
        new = pltpu.VMEM((facts.flights, facts.group, 1, K), jnp.float32)
        for kind in facts.kinds[2:]:
            scratch |= {f"old_{kind}": old, f"out_{kind}": old, f"new_{kind}": new}
        scratch |= dict(tall=pltpu.VMEM((LANES, LANES), jnp.float32))
    return scratch | dict(old_ready=arrivals, new_ready=arrivals, out_ready=arrivals)
