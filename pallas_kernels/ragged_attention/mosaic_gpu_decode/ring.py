"""The stages of a worker's ring, and the line of blocks that passes through them."""

import dataclasses
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.ragged_attention.mosaic_gpu_decode import split
from pallas_kernels.ragged_attention.mosaic_gpu_decode.form import Form, wrapped


@dataclasses.dataclass(frozen=True)
class Ring:
    """A worker's stages, and the line of blocks that passes through them. A point of the line is
    (row, head, number of the block in the row, the row's fields). Narrow pages: scales [P, K,
    page_size] and their stages come along, and wide are tiles to widen a block of keys and of values in.
    """

    form: Form
    rows: Any
    table: Any
    pages: tuple[Any, Any]
    scales: tuple[Any, Any] | None
    stages: tuple[Any, Any]
    full: tuple[Any, Any]
    scale_stages: tuple[Any, ...]
    wide: tuple[Any, ...]
    wg: Any

    @classmethod
    def of(cls, form: Form, rows, table, pages, scales, scratch, wg):
        """scratch: the stages, their barriers, and for narrow pages the scales' stages and tiles."""
        pairs = [tuple(scratch[i : i + 2]) for i in range(0, 8, 2)]
        stages, full, scale_stages, wide = pairs
        return cls(form, rows, table, pages, scales, stages, full, scale_stages, wide, wg)

    def bring(self, step, point):
        """Start copying a point's keys and values into the stage of a step."""
        form, (row, head, number, shape) = self.form, point
        place = lax.rem(step, jnp.int32(form.blocks.stages))
        first = wrapped(form, shape[split.FIRST] + number) * form.blocks.slots
        size = form.blocks.slots // form.copies
        for part in range(form.copies):
            page, offset = self.locate(row, first + part * size)
            ways = list(zip(self.pages, self.stages, self.full, strict=True))
            if self.scales is not None:
                ways += zip(self.scales, self.scale_stages, self.full, strict=True)
            for pages, stages, full in ways:
                target = stages.at[self.wg, place]
                plgpu.copy_gmem_to_smem(
                    pages.at[page, head, pl.ds(offset, size)],
                    target if form.copies == 1 else target.at[pl.ds(part * size, size)],
                    full.at[self.wg, place],
                )

    def locate(self, row, slot):
        """The page of a slot, and the place in it; past the ring's end, any page of the row's."""
        if self.table is None:
            return row, slot
        size = jnp.int32(self.form.page_size)
        inside = jnp.minimum(slot, self.form.capacity - 1)
        return self.table[row, lax.div(inside, size)], lax.rem(slot, size)

    def after(self, point):
        """The next point: the pair's next block, or the next head's first, or the next row's."""
        row, head, number, shape = point
        over = number + 1 == shape[split.COUNT]
        return self._from(
            row, jnp.where(over, head + 1, head), jnp.where(over, 0, number + 1), shape
        )

    def onward(self, point, many):
        """The point `many` blocks on, not beyond the pair's end."""
        row, head, number, shape = point
        over = number + many == shape[split.COUNT]
        return self._from(
            row, jnp.where(over, head + 1, head), jnp.where(over, 0, number + many), shape
        )

    def _from(self, row, head, number, shape):
        def same():
            return (row, head, *shape)

        def next_row():
            new = jnp.minimum(row + 1, self.form.B - 1)
            return (new, jnp.int32(0), *(self.rows[new, i] for i in range(len(shape))))

        row, head, *shape = lax.cond(head == self.form.K, next_row, same)
        return row, head, number, tuple(shape)
