"""How fast decode attention is on this device: `python -m pallas_kernels.ragged_attention.bench`.

Prints a line of JSON per case and form. Calls are chained (the answer is the next query) inside one
jit, and walk in turn over caches that together are several times larger than the device's, so that
every read comes from memory.

`--write` adds the new token's way into the cache: XLA's scatter before the attention kernel ("two
steps"), and the kernel that does both ("fused"). `--sweep` takes `SWEPT` cases through the ways of
sharing their work in `SPLITS`. With both, each split writes too. To switch on what wins, set
"write" or "cluster" in tuned/nvidia_h200.ragged_attention.json.

What holds a short row back. One row of 1,024 of an 8B model is 4 MB of keys and values, 1.0 us at the
device's rate; the call takes 6.2. It is a chain of waits, each a way to memory or back: the launch
(about 1.1 us), the worker's range (0.6), its first block (1.0), products and softmax (0.7), pieces to
memory and the signal (1.2), the merging worker's wait (0.7) and loads (0.8), the answer (0.2). Not the
rate: 128 blocks of 32 KB go to 128 warpgroups, one each, all at once. So the candidates:

- clusters (`mosaic_gpu_decode.cluster`): no range to load, pieces through the cluster's shared memory
  and one of its barriers, some 0.5 us for 3.3. Eight multiprocessors of two warpgroups hold a pair of
  1,024 slots in one block each; with fewer (4, 2) a worker reads several, with a cheaper barrier;
- four warpgroups in place of two: half as long a stretch for each at 8,192, more pieces to merge;
- more stages: only where a worker has more than two blocks (from 4,096 slots on with 8 x 2);
- ranges over 64 or 32 processors: fewer pieces, fewer caches to wake, longer stretches;
- ranges with six stages of one warpgroup: as many bytes on their way, half the pieces.

At 8,192 clusters of a row's eight heads use 64 of 132 multiprocessors, which need 65 GB/s each: there
the range form may stay ahead, and with 512 pairs (64 rows) no pair is cut often enough to matter.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.narrow import narrowed
from pallas_kernels.ragged_attention import mosaic_gpu, mosaic_gpu_decode, ragged_attention, xla
from pallas_kernels.ragged_attention.cases import DECODE, Case, places
from pallas_kernels.ragged_attention.mosaic_gpu_decode import Blocks

CACHES = 4
TOTAL = 200_000_000  # bytes of keys and values that a round reads at least
SECONDS = 0.1  # of one timed run, at most
MODELS, ROWS = ("8b", "1b"), ("1 x 512", "1 x 1024", "1 x 8192", "64 x 1024")
SWEPT = tuple(f"{model}, {rows}" for model, rows in itertools.product(MODELS, ROWS))
SPLITS = (
    *(Blocks(warpgroups=w, stages=s, merged=16) for w, s in ((1, 6), (2, 2), (2, 4), (3, 2))),
    *(Blocks(warpgroups=2, stages=2, merged=16, processors=p) for p in (32, 64)),
    *(
        Blocks(warpgroups=w, stages=s, merged=16, cluster=c)
        for c, w, s in ((2, 2, 4), (4, 2, 2), (4, 4, 2), (8, 1, 2), (8, 1, 4), (8, 2, 2), (8, 4, 2))
    ),
)
Attend = Callable[..., tuple[jax.Array, tuple[jax.Array, ...]]]


def seconds_of(case: Case, attend: Attend, *, kept: str = "bfloat16", repeats: int = 7):
    """Seconds of one call of attend(q, new, cache, table, starts, counts, lengths, **rules) -> (answer,
    cache): new are keys and values [B, K, H], the cache is the pages and, if `kept` is narrow, scales.
    """
    count = max(CACHES, -(-TOTAL // case.bytes_read))
    rng = np.random.default_rng()
    table = case.table(rng)
    shape = case.pages_shape(table)
    table = None if table is None else jnp.asarray(table)

    @jax.jit
    def draw(key):
        drawn = [jax.random.normal(part, shape, jnp.bfloat16) for part in jax.random.split(key)]
        if kept == "bfloat16":
            return tuple(drawn)
        (k, k_scale), (v, v_scale) = (narrowed(x, kept) for x in drawn)
        return k, v, k_scale, v_scale

    caches = [draw(jax.random.key(i)) for i in range(count)]
    B = len(case.lengths)
    q, *new = (
        jax.random.normal(jax.random.key(99 + i), (B, heads, case.H), jnp.bfloat16)
        for i, heads in enumerate((case.N, case.K, case.K))
    )

    @functools.partial(jax.jit, static_argnames="rounds", donate_argnames="caches")
    def run(q, caches, rounds):
        def once(_, carry):
            q, caches = carry
            held = []
            for cache in caches:
                q, cache = attend(q, new, cache, table, *places(case), **case.rules)
                held.append(cache)
            return q, held

        return jax.lax.fori_loop(0, rounds, once, (q, caches))

    def time_of(caches, rounds, repeats):
        _, caches = jax.block_until_ready(run(q, caches, rounds))
        found = []
        for _ in range(repeats):
            begin = time.perf_counter()
            _, caches = jax.block_until_ready(run(q, caches, rounds))
            found.append((time.perf_counter() - begin) / (rounds * len(caches)))
        return found, caches

    first, held = time_of(caches[:1], 1, 2)  # with the host's part in it
    rounds = max(1, int(SECONDS / (min(first) * count)))
    return time_of(held + caches[1:], rounds, repeats)[0]


def reading(attend: Callable[..., jax.Array]) -> Attend:
    """A function like `ragged_attention`, over a cache that stays as it is."""

    def run(q, new, cache, *given, **rules):
        k, v, *scales = cache
        if scales:
            rules |= dict(zip(("k_scale", "v_scale"), scales, strict=True))
        return attend(q, k, v, *given, **rules), cache

    return run


def two_steps(attend: Callable[..., jax.Array]) -> Attend:
    """XLA's scatter of the new token, then `attend`."""

    def run(q, new, cache, *given, **rules):
        where = {name: rules[name] for name in ("capacity", "sinks", "max_count")}
        if len(cache) > 2:
            raise NotImplementedError("writing to narrow pages is not compared here")
        cache = xla.written(*new, *cache, *given, **where)
        return attend(q, *cache, *given, **rules), cache

    return run


def fused(q, new, cache, *given, **rules):
    if len(cache) > 2:
        raise NotImplementedError("the kernel writes pages without scales")
    out, *cache = mosaic_gpu.attend_and_write(q, *new, *cache, *given, **rules)
    return out, tuple(cache)


def cudnn(
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
    window,
    sinks,
    k_scale=None,
    **_,
):
    """cuDNN's fused attention over caches of the same size, in the only order that it takes:
    [B, slots, K, H].
    """
    B, N, H = q.shape
    if k_scale is not None or table is not None or window is not None or sinks or H > 128:
        raise NotImplementedError(
            "cuDNN's attention has no pages, rings, large heads or narrow caches"
        )
    K = k_pages.shape[1]
    k, v = (pages.reshape(B, capacity, K, H) for pages in (k_pages, v_pages))
    return jax.nn.dot_product_attention(
        q[:, None],
        k,
        v,
        scale=scale,
        key_value_seq_lengths=lengths,
        query_seq_lengths=jnp.ones_like(lengths),
        implementation="cudnn",
    )[:, 0]


def forms_of(
    case: Case, names: list[str], *, write: bool, sweep: bool, itemsize: int = 2
) -> list[tuple[dict, Attend]]:
    """What is compared for elements of `itemsize` bytes: (labels, how)."""
    found: list[tuple[dict, Attend]] = []
    for name in names:
        attend = cudnn if name == "cudnn" else functools.partial(ragged_attention, backend=name)
        found.append((dict(backend=name), reading(attend)))
        if write and name == "mosaic_gpu":
            found.append((dict(backend=name, write="two steps"), two_steps(attend)))
            found.append((dict(backend=name, write="fused"), fused))
    if sweep and case.name in SWEPT:
        for blocks in SPLITS:
            fitted = mosaic_gpu_decode.fitting(blocks, case.H, case.N // case.K, itemsize)
            labels: dict[str, Any] = dict(backend="mosaic_gpu", blocks=vars(fitted))
            attend = functools.partial(mosaic_gpu.ragged_attention, blocks=fitted)
            found.append((labels, reading(attend)))
            if write:
                labels = labels | dict(write="fused")
                found.append((labels, functools.partial(fused, blocks=fitted)))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time decode attention on this device.")
    parser.add_argument("--case", default="", help="only cases whose names contain this")
    parser.add_argument("--backends", nargs="*", default=["mosaic_gpu", "xla", "cudnn"])
    parser.add_argument("--kept", nargs="+", default=["bfloat16"], choices=["bfloat16", "int8"])
    parser.add_argument("--write", action="store_true", help="with the new token's way in, too")
    parser.add_argument("--sweep", action="store_true", help="the kernel with many splits")
    options = parser.parse_args(arguments)
    device = jax.devices()[0].device_kind
    print(json.dumps(dict(device=device, jax=jax.__version__)), flush=True)
    for case in DECODE:
        if options.case not in case.name or (options.sweep and case.name not in SWEPT):
            continue
        for kept in options.kept:
            rules = dict(write=options.write, sweep=options.sweep)
            forms = forms_of(case, options.backends, **rules, itemsize=jnp.dtype(kept).itemsize)
            for labels, attend in forms:
                print(json.dumps(line(case, kept, labels, attend)), flush=True)


def line(case: Case, kept: str, labels: dict, attend: Attend) -> dict:
    """One result as it is printed: microseconds a call (median and all), terabytes read a second."""
    result: dict = dict(case=case.name, kept=kept, **labels)
    try:
        found = seconds_of(case, attend, kept=kept)
    except NotImplementedError as error:
        return result | dict(unsupported=str(error))
    median = statistics.median(found)
    share = 1.0 if kept == "bfloat16" else (case.H + 4) / (2 * case.H)
    return result | dict(
        microseconds=round(median * 1e6, 2),
        terabytes_a_second=round(share * case.bytes_read / median / 1e12, 3),
        spread=round((max(found) - min(found)) / median, 3),
    )


if __name__ == "__main__":
    main()
