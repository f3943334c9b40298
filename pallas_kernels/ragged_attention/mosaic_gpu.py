"""Ragged paged ring attention on Hopper through Pallas Mosaic GPU: which form takes which batch."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.backend import multiprocessors
from pallas_kernels.ragged_attention import mosaic_gpu_decode, mosaic_gpu_prefill
from pallas_kernels.ragged_attention.mosaic_gpu_decode import Blocks

TUNED = Path(__file__).parents[1] / "tuned" / "nvidia_h200.ragged_attention.json"


@functools.cache
def _tuned() -> dict[str, Any]:
    """decode: block sizes of the decode form, for each head size that was measured. write: whether
    decode rows write their new token in the kernel. cluster: whether at most so many pairs of a row
    and a kv head, over so many slots a row, are read by clusters. narrow: whether decode rows over int8
    pages take the kernel. ("on": false until measured.)
    """
    return json.loads(TUNED.read_text())


def decode_blocks(
    H: int, G: int = 1, pairs: int | None = None, span: int = 0, itemsize: int = 2
) -> Blocks:
    """The block sizes for heads of H elements of `itemsize` bytes, G query heads a kv head: those of the
    next measured size, or those of clusters where they take so few pairs of a row and a kv head, and
    so short a span.
    """
    few = _tuned()["cluster"]
    if few["on"] and pairs is not None and pairs <= few["pairs"] and span <= few["span"]:
        blocks = mosaic_gpu_decode.fitting(Blocks(**few["blocks"]), H, G, itemsize)
        if blocks.stages >= 2:
            return blocks
    measured = _tuned()["decode"]
    sizes = sorted(int(size) for size in measured)
    size = next((size for size in sizes if size >= H), sizes[-1])
    tuned = Blocks(**measured[str(size)], processors=multiprocessors())
    return mosaic_gpu_decode.fitting(tuned, H, G, itemsize)


def why_not(q, k_pages, table, *, capacity, window, sinks, q_far, max_count: int) -> str | None:
    """Why no kernel can take these arguments, or None."""
    if max_count > 1:
        rules = dict(capacity=capacity, window=window, sinks=sinks, q_far=q_far)
        return mosaic_gpu_prefill.why_not(q, k_pages, table, **rules)
    if k_pages.dtype == jnp.int8 and not _tuned()["narrow"]["on"]:
        return "was not yet measured over int8 pages"
    return mosaic_gpu_decode.why_not(q, k_pages, table, blocks=decode_blocks(q.shape[2]))


def writes_inside(q, k_pages, table, *, max_count: int) -> bool:
    """Whether `attend_and_write` takes these arguments and is to be the default for them."""
    if max_count > 1 or k_pages.dtype == jnp.int8 or not _tuned()["write"]["on"]:
        return False
    return mosaic_gpu_decode.why_not(q, k_pages, table, blocks=decode_blocks(q.shape[2])) is None


def ragged_attention(
    q, k_pages, v_pages, table, starts, counts, lengths, *,
    max_count, packed, k_scale=None, v_scale=None, **rules,
):  # fmt: skip
    """Shapes as the package's function. NotImplementedError for what no kernel can take."""
    if max_count > 1 and k_scale is not None:
        raise NotImplementedError(
            f"the Mosaic GPU prefill kernel takes pages without scales, got {k_pages.dtype}; use backend='xla'"
        )
    if max_count > 1:
        return mosaic_gpu_prefill.ragged_attention(
            q, k_pages, v_pages, table, starts, counts, lengths,
            max_count=max_count, packed=packed, **rules,
        )  # fmt: skip
    given = q, k_pages, v_pages, table, starts, counts, lengths
    scales = None if k_scale is None else (k_scale, v_scale)
    return _decode(*given, packed=packed, new=None, scales=scales, **rules)


def attend_and_write(
    q, k, v, k_pages, v_pages, table, starts, counts, lengths, *, max_count, packed, **rules
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shapes as the package's function. NotImplementedError for what the decode kernel cannot take."""
    if max_count > 1:
        raise NotImplementedError(f"writing while attending needs max_count 1, got {max_count}")
    if k_pages.dtype == jnp.int8:
        raise NotImplementedError("writing while attending needs pages without scales, got int8")
    given = q, k_pages, v_pages, table, starts, counts, lengths
    new = k.astype(k_pages.dtype), v.astype(v_pages.dtype)
    return _decode(*given, packed=packed, new=new, scales=None, **rules)


def _decode(
    q, k_pages, v_pages, table, starts, counts, lengths, *, capacity, scale, window=None,
    softcap=None, sinks=0, q_far=None, span, packed, new, scales,
    blocks: Blocks | None = None,
) -> Any:  # fmt: skip
    (T, N, H), K = q.shape, k_pages.shape[1]
    blocks = blocks or decode_blocks(H, N // K, lengths.shape[0] * K, span, k_pages.dtype.itemsize)
    reason = mosaic_gpu_decode.why_not(q, k_pages, table, blocks=blocks)
    if reason is not None:
        raise NotImplementedError(f"the Mosaic GPU decode kernel {reason}; use backend='xla'")
    take = jnp.minimum(starts, T - 1)
    if packed:
        q, q_far = (None if x is None else x[take] for x in (q, q_far))
        new = None if new is None else tuple(x[take] for x in new)
    found = mosaic_gpu_decode.attend(
        q, k_pages, v_pages, table, counts, lengths, capacity=capacity, scale=scale,
        window=window, softcap=softcap, sinks=sinks, q_far=q_far, blocks=blocks, new=new,
        scales=scales,
    )  # fmt: skip
    if not packed:
        return found
    out, *pages = found if new is not None else (found,)
    put = jnp.where(counts > 0, take, T)  # T: out of bounds, dropped
    out = jnp.zeros((T, *out.shape[1:]), out.dtype).at[put].set(out, mode="drop")
    return (out, *pages) if pages else out
