"""How fast skinny products are on this device: `python -m pallas_kernels.skinny_matmul.bench`.

Prints a line of JSON per product and backend, and per chain of one layer's products. Calls depend
on each other inside one jit and walk in turn over weights that together are several times larger
than the device's cache, so that every weight comes from memory. With --sweep, the kernel runs with
many block sizes: what to keep in tuned/<device>.skinny_matmul.json.
"""

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.skinny_matmul import BACKENDS, mosaic_gpu, skinny_matmul
from pallas_kernels.skinny_matmul.cases import CASES, Case
from pallas_kernels.skinny_matmul.mosaic_gpu import MAX_ROWS, Blocks
from pallas_kernels.skinny_matmul.product import Wide
from pallas_kernels.skinny_matmul.weight import GROUP

KINDS = ("bfloat16", "int8", "float8_e4m3fn", "int4")
TOTAL = 400_000_000  # bytes of weights that a round reads at least
SETS = 4  # of weights, at least
SECONDS = 0.05  # of one timed run, about
SWEEP = [
    Blocks(warps, tiles, unroll, whole)
    for warps, tiles, unroll, whole in itertools.product(
        (4, 8, 16), (1, 2), (2, 4, 8), (True, False)
    )
]
SWEEP_WIDE = [
    Wide(groups, stages=8, split=split)
    for groups, split in itertools.product((1, 2, 4), (1, 2, 3, 4, 6, 8))
]


def weight_of(kind: str, out: int, columns: int, seed: int) -> tuple[jax.Array, jax.Array | None]:
    """(values, scale) of a random weight whose products with unit noise are unit noise, about."""

    @jax.jit
    def draw(key):
        first, second = jax.random.split(key)
        if kind == "int4":
            shape = (out, columns // 8)
            words = jax.random.bits(first, shape, jnp.uint32)
            scale = jax.random.uniform(second, (out, columns // GROUP), minval=0.5, maxval=1.5)
            scale = (scale * columns**-0.5 / 4.7).astype(jnp.bfloat16)
            return jax.lax.bitcast_convert_type(words, jnp.int32), scale
        if kind == "int8":
            values = jax.random.randint(first, (out, columns), -127, 128, jnp.int8)
            scale = jax.random.uniform(second, (out,), minval=0.5, maxval=1.5)
            return values, scale * (columns**-0.5 / 74)
        values = jax.random.normal(first, (out, columns), jnp.bfloat16)
        if kind == "bfloat16":
            return values * columns**-0.5, None
        return values.astype(kind), jnp.full((out,), columns**-0.5, jnp.float32)

    return draw(jax.random.key(seed))


def bytes_of(weights) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(weights))


def seconds_of(step: Callable, sets: list, x: jax.Array, repeats: int = 5) -> float:
    """Seconds of one step(x, weights, following weights) -> next x, the median of `repeats` runs."""

    @functools.partial(jax.jit, static_argnames="rounds")
    def run(x, sets, rounds):
        def once(_, x):
            for weights, following in zip(sets, [*sets[1:], sets[0]], strict=True):
                x = step(x, weights, following)
            return x

        return jax.lax.fori_loop(0, rounds, once, x)

    def time_of(rounds):
        begin = time.perf_counter()
        jax.block_until_ready(run(x, sets, rounds))
        return time.perf_counter() - begin

    time_of(1)
    rounds = max(1, int(SECONDS / time_of(1)))
    time_of(rounds)
    return statistics.median(time_of(rounds) for _ in range(repeats)) / (rounds * len(sets))


def product(case: Case, T: int, run: Callable) -> tuple[Callable, jax.Array]:
    """A step that is one product; each result is the next one's residual."""
    x = jax.random.normal(jax.random.key(99), (T, case.columns), jnp.bfloat16)
    gate = "silu" if case.gated else None

    def step(y, weight, _):
        return run(x, *weight, gate=gate, residual=y)

    return step, jnp.zeros((T, case.rows // 2 if case.gated else case.rows), jnp.bfloat16)


def layer(cases: list[Case], T: int, run: Callable) -> tuple[Callable, jax.Array]:
    """A step that is a layer's four products with norms, gate and residuals; in the place of
    attention, a slice.
    """
    D, width = cases[0].columns, cases[1].columns
    norm = jnp.ones((D,), jnp.bfloat16)

    def step(x, weights, following):
        qkv, out, up, down = weights
        y = run(x, *qkv, norm=norm, prefetch=out[0])
        x = run(y[:, :width], *out, residual=x, prefetch=up[0])
        y = run(x, *up, norm=norm, gate="silu", prefetch=down[0])
        return run(y, *down, residual=x, prefetch=following[0][0])

    return step, jax.random.normal(jax.random.key(99), (T, D), jnp.bfloat16)


def report(seconds: float, count: int, **labels) -> None:
    rates = dict(us=round(seconds * 1e6, 2), tb_per_s=round(count / seconds / 1e12, 3))
    print(json.dumps({**labels, **rates, "bytes": count}), flush=True)


def runs_of(names: list[str], sweep: list) -> list[tuple[dict, Callable]]:
    """What is compared: (labels, a function with skinny_matmul's arguments)."""
    found: list[tuple[dict, Callable]] = [
        (dict(backend=name), functools.partial(skinny_matmul, backend=name)) for name in names
    ]
    for blocks in sweep:

        def run(x, values, scale, *, gate=None, residual=None, norm=None, prefetch=None, b=blocks):
            rules = dict(gate=gate, norm_eps=1e-6, out_dtype=x.dtype, blocks=b)
            rest = (None, None, residual, norm, prefetch)
            return mosaic_gpu.skinny_matmul(x, values, scale, *rest, **rules)

        found.append((dict(backend="mosaic_gpu", blocks=vars(blocks)), run))
    return found


def measure(model: str, kind: str, T: int, runs: list[tuple[dict, Callable]], layers: bool) -> None:
    """A line for each product of the model (or its layer), by each of `runs` that can do it."""
    cases = [case for name, case in CASES.items() if name.startswith(model + "/")]
    groups = [cases[:4]] if layers else [[case] for case in cases]
    for group in groups:
        label = f"{model}/layer" if layers else group[0].name
        sample = [weight_of(kind, case.rows, case.columns, i) for i, case in enumerate(group)]
        count = bytes_of(sample)
        sets = [sample]
        for seed in range(1, max(SETS, -(-TOTAL // count))):
            seeds = range(seed * 8, seed * 8 + len(group))
            sets.append(
                [weight_of(kind, c.rows, c.columns, s) for c, s in zip(group, seeds, strict=True)]
            )
        for labels, run in runs:
            labels = dict(case=label, kind=kind, rows=T, **labels)
            step, x = layer(group, T, run) if layers else product(group[0], T, run)
            try:
                seconds = seconds_of(step, sets if layers else [s[0] for s in sets], x)
            except NotImplementedError as refusal:
                print(json.dumps({**labels, "refused": str(refusal)}), flush=True)
                continue
            report(seconds, count, **labels)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How fast skinny products are on this device.")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["llama3-8b"],
        choices=sorted({n.split("/")[0] for n in CASES}),
    )
    parser.add_argument("--kinds", nargs="+", default=["bfloat16", "int8", "int4"], choices=KINDS)
    parser.add_argument("--rows", nargs="+", type=int, default=[1], help="rows of activations")
    parser.add_argument(
        "--backends", nargs="*", default=["xla", "mosaic_gpu"], choices=sorted(BACKENDS)
    )
    parser.add_argument("--layer", action="store_true", help="a layer's products in a chain")
    parser.add_argument("--sweep", action="store_true", help="the kernel with many block sizes")
    chosen = parser.parse_args(arguments)
    device = jax.devices()[0].device_kind
    print(json.dumps(dict(device=device, jax=jax.__version__)), flush=True)
    for model, kind, T in itertools.product(chosen.models, chosen.kinds, chosen.rows):
        sweep = (SWEEP if T <= MAX_ROWS else SWEEP_WIDE) if chosen.sweep else []
        measure(model, kind, T, runs_of(chosen.backends, sweep), chosen.layer)


if __name__ == "__main__":
    main(sys.argv[1:])
