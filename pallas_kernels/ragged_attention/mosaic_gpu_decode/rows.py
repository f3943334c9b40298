"""Rows of a register tile to and from memory, for tiles padded to what the tensor cores need."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.mosaic.gpu as mgpu
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, scf, vector

# in any layout, however slow the way to it is
load: Callable[..., jax.Array] = functools.partial(plgpu.load, optimized=False)


def load_rows(source, shape: tuple[int, int], layout, *, interpret: bool) -> jax.Array:
    """The rows that `source` [rows, columns] has, followed by zeros up to `shape`."""
    rows, dtype = source.shape[0], source.dtype
    if interpret:
        return jnp.pad(source[...], ((0, shape[0] - rows), (0, 0)))

    def emit(ctx, ref):
        index = ir.IndexType.get()
        tiled = layout.to_mgpu()
        element = ir.MemRefType(ref.type).element_type
        registers = np.empty(tiled.registers_shape(shape), dtype=object)
        kind = tiled.registers_element_type(element)
        nothing = mgpu.c(0.0, kind)
        places = zip(tiled.thread_idxs(shape), np.ndindex(registers.shape), strict=True)
        for (row, column), at in places:
            there = _below(row, rows)
            safe = arith.select(there, row, arith.constant(index, 0))
            value = vector.load(kind, ref, [safe, column])
            registers[at] = arith.select(there, value, nothing)
        return mgpu.FragmentedArray(_registers=registers, _layout=tiled, _is_signed=None)

    found = plgpu.ShapeDtypeStruct(shape, dtype, layout=layout)
    inlined: Any = plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=found)(emit)
    return inlined(source)


def store_rows(
    target, value: jax.Array, layout, *, interpret: bool, first_of_cluster: bool = False
) -> None:
    """The leading part of `value` that `target` has room for: rows [rows], or [rows, columns].
    first_of_cluster: not into this block's shared memory but into that of its cluster's first.
    """
    shape = target.shape
    if interpret:
        value = value[tuple(slice(n) for n in shape)]
        missing = [(0, n - m) for n, m in zip(shape, value.shape, strict=True)]
        target[...] = jnp.pad(value, missing)
        return

    def emit(ctx, ref, tile):
        if first_of_cluster:
            first = arith.constant(ir.IndexType.get(), 0)
            ref = mgpu.utils.get_cluster_ref(ref, gpu.Dimension.x, first)
        places = tile.layout.thread_idxs(tile.shape)
        for place, register in zip(places, tile.registers.flat, strict=True):
            there = _below(place[0], shape[0])
            if len(shape) == 2 and shape[1] < tile.shape[1]:
                there = arith.andi(there, _below(place[1], shape[1]))
            with ir.InsertionPoint(scf.IfOp(there).then_block):
                vector.store(register, ref, list(place))
                scf.yield_([])

    inlined: Any = plgpu.inline_mgpu(arg_types=(plgpu.RefType(), layout))(emit)
    inlined(target, value)


def _below(place, limit: int):
    bound = arith.constant(ir.IndexType.get(), limit)
    return arith.cmpi(arith.CmpIPredicate.ult, place, bound)
