"""How fast decode attention is on this device: `python -m pallas_kernels.ragged_attention.bench`.

Prints a line of JSON per case and backend. Calls are chained (the answer is the next query) inside
one jit, and walk in turn over caches that together are several times larger than the device's, so
that every read comes from memory.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ragged_attention import ragged_attention
from pallas_kernels.ragged_attention.cases import DECODE, Case, places

CACHES = 4
TOTAL = 200_000_000  # bytes of keys and values that a round reads at least
SECONDS = 0.1  # of one timed run, at most


def seconds_of(case: Case, attend: Callable[..., jax.Array], *, repeats: int = 7) -> list[float]:
    """Seconds of one call of attend(q, k_pages, v_pages, table, starts, counts, lengths, **rules)."""
    count = max(CACHES, -(-TOTAL // case.bytes_read))
    rng = np.random.default_rng()
    table = case.table(rng)
    shape = case.pages_shape(table)
    table = None if table is None else jnp.asarray(table)
    draw = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16))
    caches = [tuple(draw(jax.random.key(2 * i + j)) for j in range(2)) for i in range(count)]
    q = jax.random.normal(jax.random.key(99), (len(case.lengths), case.N, case.H), jnp.bfloat16)

    @functools.partial(jax.jit, static_argnames="rounds")
    def run(q, caches, table, starts, counts, lengths, rounds):
        def once(_, q):
            for k, v in caches:
                q = attend(q, k, v, table, starts, counts, lengths, **case.rules)
            return q

        return jax.lax.fori_loop(0, rounds, once, q)

    def time_of(caches, rounds, repeats):
        call = functools.partial(run, q, caches, table, *places(case), rounds)
        jax.block_until_ready(call())
        found = []
        for _ in range(repeats):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            found.append((time.perf_counter() - begin) / (rounds * len(caches)))
        return found

    one = min(time_of(caches[:1], 1, 2))  # with the host's part in it
    return time_of(caches, max(1, int(SECONDS / (one * count))), repeats)


def cudnn(
    q, k_pages, v_pages, table, starts, counts, lengths, *, capacity, scale, window, sinks, **_
):
    """cuDNN's fused attention over caches of the same size, in the only order that it takes:
    [B, slots, K, H].
    """
    B, N, H = q.shape
    if table is not None or window is not None or sinks or H > 128:
        raise NotImplementedError("cuDNN's attention has no pages, rings or large heads")
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time decode attention on this device.")
    parser.add_argument("--case", default="", help="only cases whose names contain this")
    parser.add_argument("--backends", nargs="+", default=["mosaic_gpu", "xla", "cudnn"])
    options = parser.parse_args(arguments)
    for case in DECODE:
        if options.case not in case.name:
            continue
        for name in options.backends:
            attend = cudnn if name == "cudnn" else functools.partial(ragged_attention, backend=name)
            print(json.dumps(line(case, name, attend)), flush=True)


def line(case: Case, name: str, attend: Callable[..., jax.Array]) -> dict:
    """One result as it is printed: microseconds a call (median and all), terabytes read a second."""
    result: dict = dict(case=case.name, backend=name)
    try:
        found = seconds_of(case, attend)
    except NotImplementedError as error:
        return result | dict(unsupported=str(error))
    median = statistics.median(found)
    return result | dict(
        microseconds=round(median * 1e6, 2),
        terabytes_a_second=round(case.bytes_read / median / 1e12, 3),
        spread=round((max(found) - min(found)) / median, 3),
    )


if __name__ == "__main__":
    main()
