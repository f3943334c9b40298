"""What this machine reaches on the simplest programs: the ceilings that percentages refer to.

Datasheets promise more than any program gets. A copy reads and writes; a sum and a matrix-vector
product only read; a large matrix product is bound by arithmetic. Operands are random (zeros run
faster) and far larger than any cache.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxinfer.bench import environment
from jaxinfer.bench.timing import measure
from jaxinfer.roofline import Chip

GIB = 1 << 30
CALLS = 8  # dispatched at once and waited for together, so that launching them costs nothing


@dataclass(frozen=True)
class Sizes:
    """bytes and dtype of the array that is copied and read; rows and columns of square matrix
    products.
    """

    bytes: int
    matrix: int
    dtype: str = "bfloat16"


SIZES = {
    "cpu": Sizes(GIB // 4, 1024, "float32"),  # whose programs widen bfloat16 first
    "gpu": Sizes(2 * GIB, 8192),
    "tpu": Sizes(GIB, 8192),
}


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second of a copy (read and written counted), of a sum and of a matrix-vector product
    (read); FLOP per second of square matrix products by the type of their operands (float32 in full
    precision).
    """

    copy: float
    sum: float
    matvec: float
    matmul: dict[str, float]

    @property
    def read(self) -> float:
        """Bytes per second: the fastest reading program."""
        return max(self.sum, self.matvec)

    def chip(self) -> Chip:
        """This machine as the roofline has chips: its floors are those of what was measured here."""
        machine = environment.hardware()
        flops = dict(self.matmul)
        if "bfloat16" in flops:
            flops["float16"] = flops["bfloat16"]  # the units are the same where there are both
        memory = machine["memory_bytes"] or environment.host_memory()
        return Chip(machine["device"], memory, self.read, flops, source="measured here")

    def describe(self) -> dict:
        """Ready for JSON, in bytes and FLOP per second."""
        return {
            "copy_bytes_per_s": self.copy,
            "sum_bytes_per_s": self.sum,
            "matvec_bytes_per_s": self.matvec,
            "read_bytes_per_s": self.read,
            "matmul_flop_per_s": self.matmul,
        }


@functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
def _copy(place, x):
    """x, written where `place` was: nothing is allocated."""
    return jnp.copy(x)


@jax.jit
def _sum(x):
    return jnp.sum(x, dtype=jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def _product(a, b, out):
    """a [M, D] times b [N, D] -> [M, N], weights stored `[out, in]` as the model's are."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    contract = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, precision=precision, preferred_element_type=out)


def measure_ceilings(
    sizes: Sizes | None = None,
    *,
    repeats: int = 5,
    progress: Callable[[str], None] = lambda what: None,
) -> Ceilings:
    """Measure them on the default device; progress(what) is called before each.

    sizes None: SIZES of the platform. A type that the device cannot multiply is left out.
    """
    sizes = sizes or SIZES.get(jax.default_backend(), SIZES["gpu"])
    dtype, columns = jnp.dtype(sizes.dtype), 8192
    rows = sizes.bytes // (dtype.itemsize * columns)
    progress("copy")
    x = jax.random.uniform(jax.random.key(0), (rows, columns), dtype, -1.0)
    nbytes = x.size * x.dtype.itemsize
    copy = 2 * nbytes / _copy_seconds(x, repeats)
    progress("read")
    total = nbytes / _seconds(_sum, (x,), repeats)
    row = jax.random.uniform(jax.random.key(1), (1, columns), dtype, -1.0)
    matvec = nbytes / _seconds(_product, (row, x, jnp.float32), repeats)
    del x
    matmul = {}
    for name, out in (("bfloat16", "bfloat16"), ("float32", "float32"), ("int8", "int32")):
        progress(f"matmul {name}")
        a, b = (_operand(i, sizes.matrix, name) for i in (2, 3))
        try:
            seconds = _seconds(_product, (a, b, jnp.dtype(out)), repeats)
        except NotImplementedError:
            continue
        matmul[name] = 2 * sizes.matrix**3 / seconds
    return Ceilings(copy, total, matvec, matmul)


def _operand(seed, size, name):
    key = jax.random.key(seed)
    if name == "int8":
        return jax.random.randint(key, (size, size), -127, 128, jnp.int8)
    return jax.random.uniform(key, (size, size), jnp.dtype(name), -1.0)


def _copy_seconds(x, repeats) -> float:
    held = [jnp.zeros_like(x)]

    def several(given):
        for _ in range(CALLS):
            held.append(_copy(held.pop(), given))
        return held

    return measure(several, lambda: x, repeats=repeats).divided(CALLS).median


def _seconds(program, operands, repeats) -> float:
    def several(given):
        out = None
        for _ in range(CALLS):
            out = program(*given)  # the one before is freed as soon as it is done
        return out

    return measure(several, lambda: operands, repeats=repeats).divided(CALLS).median
