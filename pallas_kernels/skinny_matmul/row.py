"""What one thread does where there is a single row of activations.

A warp owns pairs of whole rows of the weight, and one load of the warp is 512 neighbouring bytes
of one row: whole lines, the pattern that memory serves fastest. The tensor cores see those bytes as
eight rows of 64 bytes: "row" g of the product is the g-th piece of the weight's row, and column n of
the activations is the n-th piece of x. Only the diagonal of the result means anything, and its sum
over the warp is the answer. That costs no more instructions than the general form, whose other
seven rows of activations would be idle here.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, math, scf

from pallas_kernels.skinny_matmul import registers as r
from pallas_kernels.skinny_matmul.product import WIDTH, step_of
from pallas_kernels.skinny_matmul.thread import Thread
from pallas_kernels.skinny_matmul.weight import GROUP


class RowThread(Thread):
    """Lane 4 g + t works on byte 16 lane and following of every 512 of each of its rows."""

    def walk(self) -> tuple[ir.Value, int]:
        return r.word(0), 1

    def fetch(self, batch: ir.Value, needed: ir.Value | None = None) -> list[ir.Value]:
        p = self.product
        unroll, rows = p.blocks.unroll, self.rows_of_weights()
        values, width = self.base("values"), int(p.columns * WIDTH[p.kind])
        inside = arith.addi(
            arith.muli(batch, r.word(32 * r.BYTES * unroll)),
            arith.muli(self.lane, r.word(r.BYTES)),
        )
        starts = [r.at(values, row, width, inside) for row in rows]
        words = []
        for step in range(unroll):
            for start in starts:
                words += r.stream(r.offset(start, 32 * r.BYTES * step), needed)
        if p.kind == "int4":
            size = p.dtypes["scale"].itemsize
            group = arith.addi(arith.muli(batch, r.word(8 * unroll)), self.g)
            if size == 2:  # the word that holds this scale and its neighbour
                group = arith.andi(group, r.word(-2))
            inside = arith.muli(group, r.word(size))
            scales, width = self.base("scale"), p.columns // GROUP * size
            for step in range(unroll):
                for row in rows:
                    start = r.at(scales, row, width, inside)
                    words += r.load(r.offset(start, 8 * size * step), 1)
        return words

    def rows_of_weights(self) -> list[ir.Value]:
        """Pair after pair; gated, the second pair is the first one's up rows."""
        p = self.product
        pairs = 1 if p.gate else p.tiles
        first = arith.addi(self.row0, arith.muli(self.warp, r.word(2 * pairs)))
        found = []
        for i in range(2 * pairs):
            found.append(arith.minsi(r.plus(first, i), r.word(p.out - 1)))
        return [*found, *(r.plus(row, p.out) for row in found)] if p.gate else found

    def products(self, fetched: list, batch: ir.Value, sums: list) -> list[ir.Value]:
        p = self.product
        unroll, rows = p.blocks.unroll, 2 * p.tiles
        words = fetched[: 4 * unroll * rows]
        scales = fetched[len(words) :]
        sums = list(sums)
        for step in range(unroll):
            acts = self.activations(batch, step, 0)
            for tile in range(p.tiles):
                at = step * rows + 2 * tile
                first, second = (self.widened(words[4 * i : 4 * i + 4]) for i in (at, at + 1))
                here = slice(4 * tile, 4 * tile + 4)
                part = [r.real(0.0)] * 4 if p.kind == "int4" else sums[here]
                for j in range(0, len(first), 2):
                    a = [first[j], second[j], first[j + 1], second[j + 1]]
                    part = r.multiply(part, a, acts[j : j + 2])
                if p.kind == "int4":
                    pair = [self.own_scale(scales[at + i]) for i in (0, 0, 1, 1)]
                    part = [
                        math.fma(new, factor, old)
                        for new, factor, old in zip(part, pair, sums[here], strict=True)
                    ]
                sums[here] = part
        return sums

    def own_scale(self, word: ir.Value) -> ir.Value:
        """The scale of piece g, in float32."""
        if self.product.dtypes["scale"] == jnp.float32:
            return arith.bitcast(ir.F32Type.get(), word)
        odd = arith.muli(arith.andi(self.g, r.word(1)), r.word(16))
        return r.lower_half(arith.shrui(word, odd))

    def activations(self, batch: ir.Value, step: int, eight: int) -> list[ir.Value]:
        p = self.product
        pieces = self.pieces()
        size = pieces * 32 * r.BYTES
        start = arith.addi(self.base("activations"), arith.muli(self.lane, r.word(r.BYTES)))
        start = arith.addi(start, arith.muli(batch, r.word(size * p.blocks.unroll)))
        words = []
        for piece in range(pieces):
            words += r.load(r.plus(start, size * step + 32 * r.BYTES * piece), 4)
        return words

    def pieces(self) -> int:
        """Of 16 bytes of activations, that meet 16 bytes of weights."""
        return step_of(self.product.kind, True) * 2 // (32 * r.BYTES)

    def place(self, target: ir.Value, row: int, chunk: ir.Value) -> ir.Value:
        """Piece after piece, each with all lanes next to each other: no two in one bank."""
        pieces = r.word(self.pieces())
        index = arith.divui(chunk, r.word(r.BYTES))
        step = arith.divui(index, arith.muli(pieces, r.word(32)))
        lane = arith.remui(arith.divui(index, pieces), r.word(32))
        piece = arith.remui(index, pieces)
        order = arith.addi(arith.muli(step, pieces), piece)
        order = arith.addi(arith.muli(order, r.word(32)), lane)
        return arith.addi(target, arith.muli(order, r.word(r.BYTES)))

    def outputs(self) -> list[tuple[ir.Value, ir.Value, ir.Value]]:
        """Lane i of a warp finishes its row i."""
        p = self.product
        own = p.rows // p.blocks.warps
        row = arith.addi(
            arith.muli(self.warp, r.word(own)), arith.minsi(self.lane, r.word(own - 1))
        )
        slt = arith.CmpIPredicate.slt
        real = arith.andi(
            arith.cmpi(slt, self.lane, r.word(own)),
            arith.cmpi(slt, arith.addi(self.row0, row), r.word(p.out)),
        )
        return [(row, r.word(0), real)]

    def share(self, sums: Sequence) -> list[ir.Value]:
        """The sum of every row of this warp, known to all its lanes."""
        eq = arith.CmpIPredicate.eq
        odd = arith.cmpi(eq, arith.andi(self.g, r.word(1)), r.word(1))
        diagonal = arith.cmpi(eq, self.t, arith.shrui(self.g, r.word(1)))
        found = []
        for first in range(0, len(sums), 2):
            total = arith.select(odd, sums[first + 1], sums[first])
            total = arith.select(diagonal, total, r.real(0.0))
            for distance in (16, 8, 4, 2, 1):
                total = arith.addf(total, r.from_lane(total, distance))
            found.append(total)
        return found

    def finish(self, extras: list[dict], shared: list) -> None:
        p = self.product
        [(row, token, real)] = self.outputs()
        own = p.rows // p.blocks.warps
        totals = [shared[:own], shared[own:]] if p.gate else [shared]
        parts = []
        for side in totals:
            mine = side[0]
            for lane, total in enumerate(side[1:], 1):
                here = arith.cmpi(arith.CmpIPredicate.eq, self.lane, r.word(lane))
                mine = arith.select(here, total, mine)
            parts.append(mine)
        branch = scf.IfOp(real)
        with ir.InsertionPoint(branch.then_block):
            self.write(row, token, parts, extras[0])
            scf.yield_([])
