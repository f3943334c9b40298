"""What one thread does with up to sixteen rows of activations, instruction by instruction."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils as mgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, math, scf

from pallas_kernels.skinny_matmul import registers as r
from pallas_kernels.skinny_matmul.activations import Activations
from pallas_kernels.skinny_matmul.epilogue import Epilogue
from pallas_kernels.skinny_matmul.product import PAD, WIDTH, step_of
from pallas_kernels.skinny_matmul.weight import GROUP


class Thread(Activations, Epilogue):
    """The program of one thread: lane 4 g + t of a warp works on rows g and g + 8 of each tile of
    weights, and on every fourth sixteen bytes of them, beginning with t.
    """

    def emit(self) -> None:
        """The whole program."""
        p = self.product
        first, stride = self.walk()
        sums = [r.real(0.0)] * (4 * p.tiles * p.eights)
        fetched = self.fetch(first)
        extras = self.extras()
        self.fill()
        once = stride == p.batches
        sums = self.products(fetched, first, sums) if once else self.loop(fetched, sums)
        self.prefetch()
        self.finish(extras, self.share(sums))

    def walk(self) -> tuple[ir.Value, int]:
        """This warp's first batch and the distance to its next."""
        return self.warp, self.product.blocks.warps

    def loop(self, fetched: list, sums: list) -> Sequence[ir.Value]:
        """The sums after all batches of this warp; the next one's loads come before the last's use."""
        first, stride = self.walk()
        index, count = ir.IndexType.get(), self.product.batches
        low, high, by = arith.index_cast(index, first), mgpu.c(count, index), mgpu.c(stride, index)
        loop = scf.ForOp(low, high, by, [*sums, *fetched])
        with ir.InsertionPoint(loop.body):
            batch = arith.index_cast(r.i32(), loop.induction_variable)
            carried = list(loop.inner_iter_args)
            sums, now = carried[: len(sums)], carried[len(sums) :]
            following = r.plus(batch, stride)
            more = arith.cmpi(arith.CmpIPredicate.slt, following, r.word(count))
            following = arith.select(more, following, batch)
            then = self.fetch(following, arith.extui(r.i32(), more))
            scf.yield_([*self.products(now, batch, sums), *then])
        return list(loop.results)[: len(sums)]

    def rows_of_weights(self) -> list[ir.Value]:
        """Tile 0: rows g, g + 8, tile 1: ... Past the end: the last row again."""
        p = self.product
        found = []
        for tile in range(p.tiles):
            for half in range(2):
                row = arith.addi(self.row0, r.plus(self.g, 8 * half))
                row = r.plus(row, 0 if p.gate else 16 * tile)
                row = arith.minsi(row, r.word(p.out - 1))
                found.append(r.plus(row, p.out if p.gate and tile else 0))
        return found

    def fetch(self, batch: ir.Value, needed: ir.Value | None = None) -> list[ir.Value]:
        """Every word that a batch of `unroll` steps needs of the weights, then of their scales."""
        p = self.product
        unroll, rows = p.blocks.unroll, self.rows_of_weights()
        values, width = self.base("values"), int(p.columns * WIDTH[p.kind])
        inside = arith.addi(
            arith.muli(batch, r.word(4 * r.BYTES * unroll)), arith.muli(self.t, r.word(r.BYTES))
        )
        starts = [r.at(values, row, width, inside) for row in rows]
        words = []
        for step in range(unroll):
            for start in starts:
                words += r.stream(r.offset(start, 4 * r.BYTES * step), needed)
        if p.kind == "int4":
            size = p.dtypes["scale"].itemsize
            scales, width = self.base("scale"), p.columns // GROUP * size
            inside = arith.muli(batch, r.word(unroll * size))
            for row in rows:
                start = r.at(scales, row, width, inside)
                words += r.load_run(start, unroll * size // 4, width // 4)
        return words

    def products(self, fetched: list, batch: ir.Value, sums: list) -> list[ir.Value]:
        """The sums after one batch: per tile and eight rows of activations, four floats."""
        p = self.product
        unroll, halves = p.blocks.unroll, 2 * p.tiles
        words = fetched[: 4 * unroll * halves]
        scales = fetched[len(words) :]
        sums = list(sums)
        for step in range(unroll):
            acts = [self.activations(batch, step, eight) for eight in range(p.eights)]
            for tile in range(p.tiles):
                first, second = (
                    self.widened(words[4 * i : 4 * i + 4])
                    for i in (step * halves + 2 * tile, step * halves + 2 * tile + 1)
                )
                for eight in range(p.eights):
                    here = slice(4 * (tile * p.eights + eight), 4 * (tile * p.eights + eight) + 4)
                    part = [r.real(0.0)] * 4 if p.kind == "int4" else sums[here]
                    for j in range(0, len(first), 2):
                        a = [first[j], second[j], first[j + 1], second[j + 1]]
                        part = r.multiply(part, a, acts[eight][j : j + 2])
                    if p.kind == "int4":
                        per_row = len(scales) // halves
                        factor = [
                            self.scale_of(scales[(2 * tile + half) * per_row :], step)
                            for half in (0, 0, 1, 1)
                        ]
                        part = [
                            math.fma(new, f, old)
                            for new, f, old in zip(part, factor, sums[here], strict=True)
                        ]
                    sums[here] = part
        return sums

    def scale_of(self, words: list, step: int) -> ir.Value:
        """The step's scale in float32, of the words that hold one row's."""
        if self.product.dtypes["scale"] == jnp.float32:
            return arith.bitcast(ir.F32Type.get(), words[step])
        half = r.upper_half if step % 2 else r.lower_half
        return half(words[step // 2])

    def widened(self, words: list) -> list[ir.Value]:
        """Four words of weights as words of bfloat16, neighbours along `in`."""
        if self.product.kind == "float":
            return words
        if self.product.kind == "int4":
            offset = r.word(0x43084308)  # 128 + 8
            return [pair for word in words for pair in r.from_int4(word, offset)]
        widen = r.from_int8 if self.product.kind == "int8" else r.from_fp8
        return [pair for word in words for pair in widen(word)]

    def activations(self, batch: ir.Value, step: int, eight: int) -> list[ir.Value]:
        """The words of row g of an eight that meet this thread's weights of a step."""
        p = self.product
        columns = step_of(p.kind, False)
        row = arith.minsi(arith.addi(self.g, r.word(8 * eight)), r.word(p.T - 1))
        start = arith.addi(self.base("activations"), arith.muli(row, r.word(2 * (p.columns + PAD))))
        start = arith.addi(start, arith.muli(batch, r.word(2 * columns * p.blocks.unroll)))
        start = arith.addi(start, arith.muli(self.t, r.word(columns // 2)))
        words = []
        for byte in range(0, columns // 2, r.BYTES):
            words += r.load(arith.addi(start, r.word(2 * columns * step + byte)), 4)
        return words

    def share(self, sums: Sequence) -> list[ir.Value]:
        """Put this warp's sums where the block can see them: [warp, row of x, row of weights]."""
        p = self.product
        width = 16 * p.tiles
        start = arith.muli(self.warp, r.word(8 * p.eights * width))
        start = arith.addi(start, self.g)
        start = arith.addi(start, arith.muli(self.t, r.word(2 * width)))
        start = arith.addi(self.base("partial"), arith.muli(start, r.word(4)))
        for tile in range(p.tiles):
            for eight in range(p.eights):
                for i in range(4):
                    value = sums[4 * (tile * p.eights + eight) + i]
                    place = (8 * eight + i % 2) * width + 16 * tile + 8 * (i // 2)
                    r.store_shared(r.plus(start, 4 * place), [arith.bitcast(r.i32(), value)])
        r.block_barrier()
        return []

    def finish(self, extras: list[dict], shared: list) -> None:
        """Add up the warps' sums in order, apply the epilogue and write the result."""
        p = self.product
        width = 16 * p.tiles
        for (row, token, real), here in zip(self.outputs(), extras, strict=True):
            branch = scf.IfOp(real)
            with ir.InsertionPoint(branch.then_block):
                place = arith.addi(arith.muli(token, r.word(width)), row)
                start = arith.addi(self.base("partial"), arith.muli(place, r.word(4)))
                sides = range(2 if p.gate else 1)
                self.write(row, token, [self.total(r.plus(start, 64 * i)) for i in sides], here)
                scf.yield_([])

    def total(self, start: ir.Value) -> ir.Value:
        p = self.product
        stride = 4 * 8 * p.eights * 16 * p.tiles
        shares = [r.load(r.plus(start, stride * w), 1)[0] for w in range(p.blocks.warps)]
        total = arith.bitcast(ir.F32Type.get(), shares[0])
        for share in shares[1:]:
            total = arith.addf(total, arith.bitcast(ir.F32Type.get(), share))
        return total
