"""Few rows on Hopper: up to sixteen, weights straight from memory into registers; above, `wide`.

A block of threads owns some rows of the weight and all of `in`; it needs no other block. Weights
are widened to bfloat16 in registers, exactly and with few instructions, and tensor cores multiply
them by the activations, which wait in shared memory (normalized there, if asked). Tensor cores take
any order of `in` as long as both operands agree: here every thread loads 16 neighbouring bytes of a
row, and the activations follow. Two forms:

- `thread`, tiles: a warp multiplies 16 rows of weights by 8 rows of activations, the block's warps
  split `in`, and their sums meet in shared memory in a fixed order (the same inputs, the same bits);
- `row`, whole rows: with one row of activations a warp takes pairs of whole rows, 512 neighbouring
  bytes a load, and needs no other warp.

What bounds such a kernel is how many bytes are on their way, so a warp asks for its first `unroll`
loads before anything else and, where there is more, for the next ones before it uses the last.
Between two kernels memory idles for some microseconds: with `prefetch`, the last blocks ask for the
head of the next weight, which then waits in the second cache.

Measured on an H200, one row of activations, microseconds a product (TB/s), weights from memory,
blocks from tuned/nvidia_h200.skinny_matmul.json, `out` halved by silu for gate-up, each product with
a residual (bf16, and all but the first of int4, while the host compiled: if anything too slow, XLA's
and ours alike):

| Llama-3-8B | qkv 4096->6144 | out 4096->4096 | gate-up 4096->28672 | down 14336->4096 |
|---|---|---|---|---|
| bf16, XLA | 23.3 (2.16) | 15.9 (2.11) | 62.7 (3.74) | 34.6 (3.40) |
| bf16, here | 18.3 (2.75) | 11.7 (2.86) | 60.9 (3.86) | 33.4 (3.52) |
| int8, XLA | 14.5 (1.74) | 12.5 (1.34) | 55.9 (2.10) | 27.0 (2.17) |
| int8, here | 10.1 (2.50) | 6.9 (2.43) | 37.6 (3.13) | 18.7 (3.15) |
| int4 (128, bf16 scales), XLA | 47.6 (0.27) | - | - | - |
| int4, here | 6.8 (1.91) | 6.7 (1.29) | 24.6 (2.46) | 13.3 (2.27) |

The ladder, on a whole layer's four int8 products in a chain with norms, gate, residuals and a slice
in the place of attention (218 MB, 52 us at 4.18 TB/s): XLA 117.6 us; tiles, eight loads a row, norms
in XLA 85.7; norms fused 81.9; whole rows with tuned blocks 75.8; 2 MiB of prefetch at the end of a
kernel 73.3 (4 and 8 MiB: 75; 16 MiB, or asked for early: slower than none). The same for int4
(112.5 MB, 27 us): 52.6. Fewer bytes on their way in more blocks beat more in fewer; read-only loads
were slower, as the assembler puts them off until their use.

In the decode step of an 8B model at a context of 1,024, one row, a layer's four products: bf16 110.1 us
(104.4 at 4.18 TB/s), int8 66.9 us (52.2); of the 1B model, bf16 37.2 us (29.1).

What is left: 2 to 4 us a kernel for its start and end, and in gate-up blocks that come and go (a
persistent kernel whose loads run on across rows would not). More than one row of activations has
been checked but not timed: there the default stays XLA, except for four-bit weights, which XLA
first widens whole.
"""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.skinny_matmul import wide
from pallas_kernels.skinny_matmul.product import PAD, Blocks, Product, Wide, step_of
from pallas_kernels.skinny_matmul.row import RowThread
from pallas_kernels.skinny_matmul.thread import Thread
from pallas_kernels.skinny_matmul.weight import kind_of, shape_of

MAX_ROWS = 16
GATES = ("silu", "gelu_tanh", "relu")
SHARED = 200 * 1024  # bytes of shared memory that one block may take
TUNED = Path(__file__).parents[1] / "tuned" / "nvidia_h200.skinny_matmul.json"


@functools.cache
def _tuned() -> dict:
    """Per kind of weight, the blocks of every product that was measured."""
    return json.loads(TUNED.read_text())


def tuned_blocks(values: jax.Array, gate: str | None, rows: int = 1) -> Blocks | Wide:
    """The blocks for the nearest shape of the same kind, for so many rows of activations."""
    (out, columns), tuned = shape_of(values), _tuned()
    kind = kind_of(values)
    kind = "int8" if kind == "fp8" else kind

    def distance(entry):
        apart = abs(math.log2(entry["out"] / out)) + abs(math.log2(entry["in"] / columns))
        return apart + 10 * (entry["gated"] != (gate is not None))

    if rows > MAX_ROWS:
        nearest = min(tuned["wide"]["blocks"][kind], key=distance)
        return Wide(**{name: nearest[name] for name in ("groups", "stages", "split")})
    nearest = min(tuned["blocks"][kind], key=distance)
    sizes = {name: nearest[name] for name in ("warps", "tiles", "unroll", "whole")}
    return Blocks(**sizes, prefetch=tuned["prefetch"])


def faster(x: jax.Array, values: jax.Array) -> bool:
    """Whether the kernel beats XLA: as measured for one row and large weights, beyond doubt for
    four bits; with more rows than MAX_ROWS, where the tuned file says so ("on": false until that is
    measured).
    """
    kind, tuned = kind_of(values), _tuned()
    if x.shape[0] > MAX_ROWS:
        low, high = tuned["wide"]["rows"]
        large = values.nbytes >= tuned["from_bytes"]
        return tuned["wide"]["on"] and low <= x.shape[0] <= high and large
    if kind == "int4":
        return 0 < x.shape[0] <= MAX_ROWS
    return x.shape[0] == 1 and kind in tuned["blocks"] and values.nbytes >= tuned["from_bytes"]


def fitting(blocks: Blocks, kind: str, T: int, columns: int, normed: bool) -> Blocks | None:
    """`blocks` with the largest unroll and number of warps that divide `columns`, or None. Whole
    rows become tiles where there are more rows of activations, or no other way.
    """
    if blocks.whole and T > 1:
        blocks = replace(blocks, whole=False)
    steps, rest = divmod(columns, step_of(kind, blocks.whole))
    even = 2 if kind == "int4" and not blocks.whole else 1  # two scales fill a word
    for warps in (w for w in (16, 8, 4) if w <= blocks.warps and not rest):
        for unroll in range(min(blocks.unroll, steps), 0, -1):
            fits = steps % unroll == 0 and unroll % even == 0
            fits &= blocks.whole or steps // unroll >= warps
            if fits and (not normed or columns % (256 * warps) == 0):
                return replace(blocks, warps=warps, unroll=unroll)
    tiles = replace(blocks, whole=False)
    return fitting(tiles, kind, T, columns, normed) if blocks.whole else None


def why_not(x, values, scale, zero, norm, gate, out_dtype, blocks: Blocks | Wide) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    kind, (_, columns) = kind_of(values), shape_of(values)
    T = x.shape[0]
    if x.dtype != jnp.bfloat16 or (kind == "float" and values.dtype != jnp.bfloat16):
        return f"needs bfloat16 activations and weights, got {x.dtype} and {values.dtype}"
    given = [a.dtype for a in (scale, norm) if a is not None] + [jnp.dtype(out_dtype)]
    if not all(dtype in (jnp.float32, jnp.bfloat16) for dtype in given):
        return f"needs scales, norms and results in float32 or bfloat16, got {given}"
    if zero is not None:
        return "takes no zero points"
    if gate is not None and gate not in GATES:
        return f"knows the gates {', '.join(GATES)}, got {gate!r}"
    if isinstance(blocks, Wide):
        return wide.why_not(x, values, scale, gate, blocks)
    if not 0 < T <= MAX_ROWS:
        return f"takes 1 to {MAX_ROWS} rows with {blocks}, got {T}"
    if fitting(blocks, kind, T, columns, norm is not None) is None:
        return f"needs a multiple of 1,024 columns (here and there of less), got {columns}"
    sums = blocks.warps * (T + 8 * -(-T // 8) * 32)
    if 2 * T * (columns + PAD) + 4 * sums > SHARED:
        return f"needs activations of at most {SHARED} bytes, got {T} x {columns}"
    return None


def skinny_matmul(
    x,
    values,
    scale,
    zero,
    bias,
    residual,
    norm,
    prefetch,
    *,
    gate,
    norm_eps,
    out_dtype,
    blocks: Blocks | Wide | None = None,
    interpret=None,
):
    """Shapes as the package's function. NotImplementedError for what the kernel cannot take.
    interpret: as `plgpu.kernel` has it, for the wide form.
    """
    kind, (out, columns) = kind_of(values), shape_of(values)
    T = x.shape[0]
    blocks = blocks or tuned_blocks(values, gate, T)
    reason = why_not(x, values, scale, zero, norm, gate, out_dtype, blocks)
    if reason:
        raise NotImplementedError(f"the Mosaic GPU kernel {reason}; use backend='xla'")
    if isinstance(blocks, Wide):
        rules = dict(gate=gate, out_dtype=out_dtype, norm_eps=norm_eps, interpret=interpret)
        return wide.skinny_matmul(x, values, scale, bias, residual, norm, **rules, blocks=blocks)
    blocks = fitting(blocks, kind, T, columns, norm is not None)
    assert blocks is not None
    given = dict(x=x, values=values, scale=scale, bias=bias, residual=residual, norm=norm)
    given["prefetch"] = prefetch if blocks.prefetch else None
    given = {name: array for name, array in given.items() if array is not None}
    product = Product(
        T=T,
        out=out // 2 if gate else out,
        columns=columns,
        kind=kind,
        gate=gate,
        norm_eps=norm_eps,
        blocks=blocks,
        dtypes={name: array.dtype for name, array in given.items()},
        ahead_bytes=min(blocks.prefetch, prefetch.nbytes) if "prefetch" in given else 0,
    )
    thread = RowThread if blocks.whole else Thread

    def body(*refs, activations, partial):
        names = (*given, "y", "activations", "partial")
        emit = plgpu.inline_mgpu(arg_types=(plgpu.RefType(),) * len(names))
        emit(lambda ctx, *found: thread(product, dict(zip(names, found, strict=True))).emit())(
            *refs, activations, partial
        )

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((T, product.out), out_dtype),
        grid=(product.grid,),
        grid_names=("rows",),
        num_threads=blocks.warps // 4,
        thread_name="wg",
        scratch_types=dict(
            activations=plgpu.SMEM((T * (columns + PAD),), jnp.bfloat16),
            partial=plgpu.SMEM((product.partials,), jnp.float32),
        ),
        compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
    )(*given.values())
