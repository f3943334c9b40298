"""Seventeen to sixty-four rows on Hopper (and fewer, and 128 without a gate): weights on the left.

With so many rows the products themselves are no longer free: 64 rows of int8 weights at 4.18 TB/s ask
for 535 TFLOP/s, three quarters of what tensor cores give. Only `wgmma` is fast enough. It multiplies 64
rows of its left operand at once whatever the right one's width, so the weights stand on the left, in
tiles of 64 rows a warpgroup, and the activations, padded to a multiple of eight rows, on the right.
Both come through a ring of stages that the bulk copy engine fills: weights from memory, once;
activations from the second cache, once for every tile, which is why a tile has several warpgroups.
Narrow weights are widened to bfloat16 in registers (`widen`: exact, two instructions a weight, no
exchange between threads); bfloat16 weights go to the tensor cores from shared memory. Rows r and
r + out / 2 of a gated product meet in the registers of one warpgroup.

Where there are fewer tiles than multiprocessors, `in` is split; each part leaves float32 sums, which
XLA adds, in order (the same inputs, the same bits), in what follows the kernel. XLA also applies the
norm before, deals out the activations' columns (one pass over x with the norm, else a small kernel of
its own), and adds the residual.

The floor of the four products of a Llama-3.1-8B layer at 64 rows, at 4.18 TB/s, and what is expected
of this form (2 us for its start and end, 85% of that rate between), microseconds a product; XLA
measured in a decode step on an H200, 32 layers. Measured since, alone, on an H200 with JAX 0.11 and 8
stages: it is right, but qkv in int8 takes 17.1 us in two groups and two parts, 18.0 in one of each and
24.2 in two groups and one part, against 18.05 through XLA and the 12 expected. So it is off until a
profile says what it waits for; the other products are not measured:

| | gate-up 4096->28672 | down 14336->4096 | qkv 4096->6144 | out 4096->4096 |
|---|---|---|---|---|
| int8, floor | 28.1 | 14.0 | 6.0 | 4.0 |
| int8, expected (with sums of parts) | 35 | 22 | 12 | 9 |
| int8, XLA | 57.5 | 30.7 + 10.2 for sums of parts | 17.3 | 12.3 |
| bf16, floor | 56.2 | 28.1 | 12.0 | 8.0 |
| bf16, expected (with sums of parts) | 64 | 37 | 18 | 14 |
| bf16, XLA | 60.7 | 33.1 + 5.4 for sums of parts | 17.4 | 12.2 |
"""

import dataclasses
import functools

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.backend import multiprocessors
from pallas_kernels.skinny_matmul.product import Wide
from pallas_kernels.skinny_matmul.reference import epilogue, normalized
from pallas_kernels.skinny_matmul.warpgroup import Form, work
from pallas_kernels.skinny_matmul.weight import kind_of, shape_of
from pallas_kernels.skinny_matmul.widen import CHUNK, TILE, dealt

MAX_ROWS = 128  # of sums that a thread has registers for; gated: half as many
SHARED = 226 * 1024  # bytes of shared memory that the ring may take
DEEPEST = 12  # stages


def form_of(x, values, scale, bias, gate, blocks: Wide, interpret=None) -> Form:
    """What the kernel is for these arguments, with no more stages, groups and parts than fit."""
    kind, (out, columns) = kind_of(values), shape_of(values)
    sides = 2 if gate else 1
    out //= sides
    per_row = dict(scale=scale, bias=bias) if blocks.split == 1 else {}
    if kind == "int4":
        per_row["scale"] = scale
    form = Form(
        rows=-(-x.shape[0] // 8) * 8,
        out=out,
        columns=columns,
        kind=kind,
        gate=gate,
        sides=sides,
        names=tuple(name for name in ("scale", "bias") if per_row.get(name) is not None),
        blocks=blocks,
        processors=multiprocessors(),
        interpret=interpret is not None,
    )
    stage = 2 * form.rows * form.chunk + sides * form.tile * form.width * values.dtype.itemsize
    stages = min(blocks.stages, SHARED // stage, DEEPEST)
    return dataclasses.replace(form, blocks=dataclasses.replace(blocks, stages=stages))


def why_not(x, values, scale, gate, blocks: Wide) -> str | None:
    """Why the form cannot take these arguments (beyond what `mosaic_gpu.why_not` asks), or None."""
    T = x.shape[0]
    if not 0 < T <= MAX_ROWS // (2 if gate else 1):
        return f"takes 1 to {MAX_ROWS} rows (gated: half as many), got {T}"
    if blocks.groups not in (1, 2, 4) or blocks.stages < 2:
        return f"takes 1, 2 or 4 warpgroups and two stages or more, got {blocks}"
    form = form_of(x, values, scale, None, gate, blocks)
    if form.columns % form.chunk:
        return f"needs a multiple of {form.chunk} columns, got {form.columns}"
    if form.out % 8 or form.out < form.tile:
        return f"needs at least {form.tile} rows of weights (a side), in eights, got {form.out}"
    if not 0 < blocks.split <= form.columns // form.chunk:
        return f"splits {form.columns} columns into 1 to {form.columns // form.chunk} parts, got {blocks}"
    if form.blocks.stages < 2:
        return f"has no room in shared memory for two stages of {T} rows and {blocks}"
    return None


def skinny_matmul(
    x,
    values,
    scale,
    bias,
    residual,
    norm,
    *,
    gate,
    norm_eps,
    out_dtype,
    blocks: Wide,
    interpret=None,
):
    """Shapes as the package's function, for arguments that `why_not` has nothing against."""
    T = x.shape[0]
    if norm is not None:
        x = normalized(x.astype(jnp.float32), norm, norm_eps).astype(x.dtype)
    form = form_of(x, values, scale, bias, gate, blocks, interpret)
    x = x if form.kind == "float" else dealt(x)
    x = jnp.pad(x, ((0, form.rows - T), (0, 0)))
    given = [dict(scale=scale, bias=bias)[name] for name in form.names]
    y = launch(form, x, values, given, out_dtype, interpret)
    if form.blocks.split == 1:
        y = y[:T]
        return (
            y
            if residual is None
            else epilogue(y.astype(jnp.float32), None, residual, None).astype(out_dtype)
        )
    total = functools.reduce(jnp.add, [y[part, :T] for part in range(form.blocks.split)])
    if scale is not None and form.kind != "int4":
        total = total * scale.astype(jnp.float32)[None]
    return epilogue(total, bias, residual, gate).astype(out_dtype)


def launch(form: Form, x, values, given: list, out_dtype, interpret) -> jax.Array:
    """x [form.rows, in] -> [form.rows, out], or the parts' sums [split, form.rows, sides * out]."""
    blocks, split = form.blocks, form.blocks.split
    shape = (form.rows, form.out) if split == 1 else (split, form.rows, form.sides * form.out)

    def buffer(shape, array):
        """Rows of a stage as the tensor cores want them: eight together, their parts exchanged."""
        width = shape[-1] * array.dtype.itemsize
        swizzle = min(width, 128)
        tiles = plgpu.TilingTransform((8, swizzle // array.dtype.itemsize))
        return plgpu.SMEM(
            (blocks.stages, *shape),
            array.dtype,
            transforms=(tiles, plgpu.SwizzleTransform(swizzle)),
        )

    scratch = [
        buffer((form.rows, form.chunk), x),
        buffer((form.sides, form.tile, form.width), values),
        plgpu.Barrier(num_arrivals=1 + form.sides, num_barriers=blocks.stages),
        plgpu.Barrier(num_arrivals=blocks.groups, num_barriers=blocks.stages),
    ]
    if form.interpret and form.kind != "float":
        scratch.append(plgpu.SMEM((blocks.groups, TILE, CHUNK), jnp.bfloat16))
    return plgpu.kernel(
        functools.partial(work, form),
        out_type=jax.ShapeDtypeStruct(shape, out_dtype if split == 1 else jnp.float32),
        grid=(form.workers,),
        grid_names=("worker",),
        num_threads=blocks.groups + 1,
        thread_name="group",
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(x, values, *given)
