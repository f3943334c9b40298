"""What one worker of the wide form does: bring weights and activations in, multiply, finish.

A worker is a block of threads: `groups` warpgroups that multiply and one that brings. It takes item
after item; an item is a tile of rows of the weight and a part of `in`, and the ring of stages runs on
from one to the next.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.skinny_matmul.product import Wide
from pallas_kernels.skinny_matmul.widen import CHUNK, TILE, load, widened

WGMMA = plgpu.Layout.WGMMA
TURNED = plgpu.Layout.WGMMA_TRANSPOSED
TANH = 1.5957691216057308  # 2 sqrt(2 / pi): x (1 + tanh(u)) / 2 is x sigmoid(2 u)
GATES = {
    "silu": lambda x: x / (1 + jnp.exp(-x)),
    "gelu_tanh": lambda x: x / (1 + jnp.exp(-TANH * (x + 0.044715 * x * x * x))),
    "relu": lambda x: jnp.maximum(x, 0),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """What the kernel knows before it runs. rows: of activations, padded to eights; out: columns of
    the result; sides: 2 where rows r and out + r of the weight meet in a gate. names: the operands
    beside x and values, in order.
    """

    rows: int
    out: int
    columns: int
    kind: str
    gate: str | None
    sides: int
    names: tuple[str, ...]
    blocks: Wide
    processors: int
    interpret: bool

    @property
    def chunk(self) -> int:
        """Columns of a stage."""
        return CHUNK // 2 if self.kind == "float" else CHUNK

    @property
    def width(self) -> int:
        """Elements of `values` in a row of a stage."""
        return CHUNK // 8 if self.kind == "int4" else self.chunk

    @property
    def tile(self) -> int:
        """Rows of the result that an item owns."""
        return TILE * self.blocks.groups

    @property
    def items(self) -> int:
        return -(-self.out // self.tile) * self.blocks.split

    @property
    def workers(self) -> int:
        return min(self.items, self.processors)


def work(form: Form, x, values, *rest) -> None:
    """The kernel. x [rows, in], values [sides * out, ...], the operands `form.names`; then y [rows, out],
    or the sums of each part [split, rows, sides * out]; then the ring.
    """
    extras = dict(zip(form.names, rest, strict=False))
    y, *ring = rest[len(extras) :]
    worker = Worker(form, x, values, extras, y, *ring)
    many = (form.items - worker.index + form.workers - 1) // form.workers
    group = lax.axis_index("group")

    @pl.when(group < form.blocks.groups)
    def _multiply():
        lax.fori_loop(0, many, functools.partial(worker.multiply, group), jnp.int32(0))

    @pl.when(group == form.blocks.groups)
    def _bring():
        count = lax.fori_loop(0, many, worker.bring, jnp.int32(0))
        for stage in range(form.blocks.stages):  # nobody leaves while a barrier is in use

            @pl.when(stage < count)
            def _last(stage=stage):
                plgpu.barrier_wait(worker.free.at[stage])


@dataclasses.dataclass(frozen=True)
class Worker:
    """One block of threads. activations [stages, rows, chunk], weights [stages, sides, tile, width];
    full, free: barriers of each stage; widened: where the interpreter keeps a left operand.
    """

    form: Form
    x: Any
    values: Any
    extras: dict[str, Any]
    y: Any
    activations: Any
    weights: Any
    full: Any
    free: Any
    widened: Any = None

    @property
    def index(self):
        return lax.axis_index("worker")

    def item(self, n):
        """The n-th item: its first row, its part, and the part's stages low .. high. The last tile
        ends with the last row: it may do some of the one before again, to the same bits.
        """
        form, split = self.form, jnp.int32(self.form.blocks.split)
        i = self.index + n * form.workers
        row = jnp.minimum(lax.div(i, split) * form.tile, form.out - form.tile)
        part, steps = lax.rem(i, split), form.columns // form.chunk
        return row, part, lax.div(part * steps, split), lax.div((part + 1) * steps, split)

    def stage(self, step):
        return lax.rem(step, jnp.int32(self.form.blocks.stages))

    def bring(self, n, count):
        """Copy an item's stages in, `count` stages after the first item's first."""
        form = self.form
        row, _, low, high = self.item(n)

        @pl.loop(low, high)
        def _step(step):
            done = count + step - low
            stage = self.stage(done)

            @pl.when(done >= form.blocks.stages)
            def _wait():
                plgpu.barrier_wait(self.free.at[stage])

            full, across = self.full.at[stage], pl.ds(step * form.width, form.width)
            for side in range(form.sides):
                down = pl.ds(row + side * form.out, form.tile)
                target = self.weights.at[stage, side]
                plgpu.copy_gmem_to_smem(self.values.at[down, across], target, full)
            across = pl.ds(step * form.chunk, form.chunk)
            plgpu.copy_gmem_to_smem(self.x.at[:, across], self.activations.at[stage], full)

        return count + high - low

    def multiply(self, group, n, count):
        """An item's sums for this warpgroup's rows of the tile, and what follows them."""
        row, part, low, high = self.item(n)
        sums = (self.by_groups if self.form.kind == "int4" else self.sums)(
            group, row + group * TILE, low, high, count
        )
        self.finish(row + group * TILE, part, sums)
        return count + high - low

    def sums(self, group, row, low, high, count) -> list[jax.Array]:
        """[TILE, rows] float32 for each side."""

        def over_steps(*accumulators):
            def one(step, _):
                stage = self.stage(count + step - low)
                plgpu.barrier_wait(self.full.at[stage])
                for side, sums in enumerate(accumulators):
                    self.add(group, stage, side, sums)
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(self.free.at[stage])
                return _

            lax.fori_loop(low, high, one, None)
            return [sums[...] for sums in accumulators]

        return pl.run_scoped(over_steps, *[self.accumulator] * self.form.sides)

    def by_groups(self, group, row, low, high, count) -> list[jax.Array]:
        """The same for weights whose scales change with every stage."""
        form = self.form

        def one(step, sums):
            stage, found = self.stage(count + step - low), []
            factors = [
                self.per_row(self.extras["scale"].at[pl.ds(row + side * form.out, TILE), step])
                for side in range(form.sides)
            ]
            plgpu.barrier_wait(self.full.at[stage])
            for side, factor in enumerate(factors):

                def alone(new, side=side):
                    self.add(group, stage, side, new)
                    return new[...]

                found.append(sums[side] + pl.run_scoped(alone, self.accumulator) * factor)
            plgpu.barrier_arrive(self.free.at[stage])
            return found

        zero = plgpu.layout_cast(jnp.zeros((TILE, form.rows), jnp.float32), WGMMA)
        return lax.fori_loop(low, high, one, [zero] * form.sides)

    @property
    def accumulator(self):
        return plgpu.WGMMAAccumulatorRef((TILE, self.form.rows), jnp.float32)

    def add(self, group, stage, side, sums) -> None:
        """Begin to add a stage's products for one side to `sums`, in registers."""
        form = self.form
        left = self.weights.at[stage, side, pl.ds(group * TILE, TILE)]
        if form.kind != "float":
            left = widened(left, form.kind, form.interpret)
            if form.interpret:  # which multiplies what lies in shared memory only
                self.widened[group, :, :] = left
                left = self.widened.at[group]
        plgpu.wgmma(sums, left, self.activations.at[stage].transpose((1, 0)))

    def per_row(self, source) -> jax.Array:
        """TILE numbers of memory, each across a row of sums, in float32."""
        column = load(source, layout=WGMMA.reduce(1), optimized=False).astype(jnp.float32)
        return lax.broadcast_in_dim(column, (TILE, self.form.rows), [0])

    def finish(self, row, part, sums: list) -> None:
        """Scale, bias and gate, and the result's columns from `row` on; or, of a part, the sums."""
        form = self.form
        if form.blocks.split > 1:
            for side, found in enumerate(sums):
                here = pl.ds(row + side * form.out, TILE)
                self.store(self.y.at[part, :, here], found)
            return
        for side, found in enumerate(sums):
            here = pl.ds(row + side * form.out, TILE)
            if "scale" in self.extras and form.kind != "int4":
                found = found * self.per_row(self.extras["scale"].at[here])
            if "bias" in self.extras:
                found = found + self.per_row(self.extras["bias"].at[here])
            sums[side] = found
        y = sums[0] if form.gate is None else GATES[form.gate](sums[0]) * sums[1]
        self.store(self.y.at[:, pl.ds(row, TILE)], y)

    def store(self, target, value) -> None:
        """value [TILE, rows] to target [rows, TILE]."""
        value = plgpu.layout_cast(value.astype(target.dtype), TURNED)
        target.transpose((1, 0))[...] = value
