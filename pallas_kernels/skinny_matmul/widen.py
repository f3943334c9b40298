"""Narrow weights in registers as the left operand of a warpgroup's products.

A warpgroup takes TILE rows by CHUNK columns at a time. Thread 4 g + t of a warp holds row g (and
g + 8) of it: for a 64 x 16 product, columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9, far less than one load.
But sums do not care for the order of columns: here a thread loads CHUNK / 4 neighbours at once, from
column CHUNK / 4 * t on, calls its p-th pair of them columns 8 p + 2 t and following, and the
activations' columns are dealt out in the same order (`dealt`). No thread needs another's bytes.
"""

import functools

import jax
import jax.experimental.mosaic.gpu as mgpu
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import vector

from pallas_kernels.skinny_matmul import registers as r
from pallas_kernels.skinny_matmul.weight import ORDER

TILE = 64  # rows of weights that a warpgroup multiplies at once
CHUNK = 128  # columns of a stage; a group of four-bit weights


# JAX 0.10 demands the index that 0.11 warns of.
load = functools.partial(plgpu.load, **({"idx": ()} if jax.__version_info__ < (0, 11) else {}))


def dealt(x: jax.Array) -> jax.Array:
    """Columns [rows, a multiple of CHUNK] in the order in which the products meet them."""
    rows, columns = x.shape
    return x.reshape(rows, columns // CHUNK, 4, -1, 2).swapaxes(2, 3).reshape(rows, columns)


def layout_of(kind: str):
    """How a tile lies in registers before it is widened: 16 neighbouring bytes a load."""
    if kind == "int4":  # words of eight weights
        tiling = plgpu.Tiling(((TILE, 16), (16, 16), (8, 16), (4,)))
        return plgpu.Layout.TILED(tiling, warp_dims=(-7,), lane_dims=(-3, -2), vector_dim=-1)
    tiling = plgpu.Tiling(((TILE, CHUNK), (16, CHUNK), (8, CHUNK), (CHUNK // 4,), (16,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-8,), lane_dims=(-4, -3), vector_dim=-1)


def widened(source, kind: str, interpret: bool) -> jax.Array:
    """The tile [TILE, CHUNK] that `source` holds in shared memory, in bfloat16, its columns dealt."""
    if interpret:
        wide = source[...]
        if kind == "int4":
            places = [4 * ORDER.index(neighbour) for neighbour in range(8)]
            wide = jnp.stack([((wide >> place) & 15) - 8 for place in places], 2)
        return dealt(wide.astype(jnp.bfloat16).reshape(TILE, CHUNK))
    layout = layout_of(kind)
    shape = (TILE, CHUNK)

    def emit(ctx, packed):
        target = plgpu.Layout.WGMMA.to_mgpu()
        registers = np.empty(target.registers_shape(shape), dtype=object)
        per_row = registers.size // 2
        found = registers.reshape(per_row, 2)  # pairs of a row, rows g and g + 8
        pair = ir.VectorType.get((2,), ir.BF16Type.get())
        loads = packed.registers.reshape(2, -1)
        for half in range(2):
            pairs = [p for load in loads[half] for p in _pairs(load, kind)]
            for i, word in enumerate(pairs):
                found[i, half] = vector.bitcast(pair, _vector(word))
        return mgpu.FragmentedArray(_registers=registers, _layout=target, _is_signed=None)

    given = load(source, layout=layout)
    wide = plgpu.ShapeDtypeStruct(shape, jnp.bfloat16, layout=plgpu.Layout.WGMMA)
    return plgpu.inline_mgpu(arg_types=(layout,), return_type=wide)(emit)(given)


def _vector(word: ir.Value) -> ir.Value:
    return vector.from_elements(ir.VectorType.get((1,), r.i32()), [word])


def _pairs(load: ir.Value, kind: str) -> list[ir.Value]:
    """Words of bfloat16, neighbours along `in`, of sixteen bytes of weights."""
    words = vector.bitcast(ir.VectorType.get((4,), r.i32()), load)
    found = []
    for i in range(4):
        word = vector.extract(words, [], [i])
        if kind == "int4":
            found += r.from_int4(word, r.word(0x43084308))  # 128 + 8
        else:
            found += r.from_int8(word) if kind == "int8" else r.from_fp8(word)
    return found
