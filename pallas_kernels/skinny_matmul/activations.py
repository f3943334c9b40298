"""Activations on their way to shared memory, normalized there if asked; all threads together."""

import jax.numpy as jnp
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, math

from pallas_kernels.skinny_matmul import registers as r
from pallas_kernels.skinny_matmul.lane import Lane
from pallas_kernels.skinny_matmul.product import PAD


class Activations(Lane):
    """A row of activations lies whole, with PAD columns before the next."""

    def fill(self) -> None:
        """Put the activations, normalized if asked, into shared memory; all threads together."""
        p = self.product
        target, source = self.base("activations"), self.base("x")
        squares = []
        for row in range(p.T):
            total = r.real(0.0)
            for chunk in self.chunks():
                words = r.load(r.at(source, r.word(row), 2 * p.columns, chunk), 4)
                r.store_shared(self.place(target, row, chunk), words)
                for pair in words if "norm" in self.refs else ():
                    for half in (r.lower_half(pair), r.upper_half(pair)):
                        total = math.fma(half, half, total)
            squares.append(total)
        if "norm" in self.refs:
            factors = self.root_mean_squares(squares)
            norm = self.base("norm")
            for row in range(p.T):
                for chunk in self.chunks():
                    place = self.place(target, row, chunk)
                    pairs = zip(r.load(place, 4), self.norm_of(norm, chunk), strict=True)
                    r.store_shared(place, [r.scaled(*pair, factors[row]) for pair in pairs])
        r.block_barrier()

    def chunks(self) -> list[ir.Value]:
        """Byte offsets in a row of activations of the sixteen bytes that are this thread's to bring.
        Where threads outnumber them, some bring the same.
        """
        p = self.product
        count = 2 * p.columns // r.BYTES
        found = []
        for first in range(0, count, p.threads):
            chunk = arith.addi(self.index, r.word(first))
            found.append(arith.muli(arith.minsi(chunk, r.word(count - 1)), r.word(r.BYTES)))
        return found

    def place(self, target: ir.Value, row: int, chunk: ir.Value) -> ir.Value:
        return arith.addi(target, r.plus(chunk, 2 * row * (self.product.columns + PAD)))

    def root_mean_squares(self, squares: list) -> list[ir.Value]:
        """One over the root mean square of each row, of every thread's share of squares."""
        p = self.product
        sums = self.base("partial")
        for row, total in enumerate(squares):
            for distance in (16, 8, 4, 2, 1):
                total = arith.addf(total, r.from_lane(total, distance))
            place = arith.muli(r.plus(arith.muli(self.warp, r.word(p.T)), row), r.word(4))
            r.store_shared(arith.addi(sums, place), [arith.bitcast(r.i32(), total)])
        r.block_barrier()
        found = []
        for row in range(p.T):
            total = r.real(p.norm_eps * p.columns)
            for warp in range(p.blocks.warps):
                share = r.load(r.plus(sums, 4 * (warp * p.T + row)), 1)[0]
                total = arith.addf(total, arith.bitcast(ir.F32Type.get(), share))
            mean = arith.mulf(total, r.real(1.0 / p.columns))
            found.append(r.approximately("rsqrt", mean))
        return found

    def norm_of(self, norm: ir.Value, chunk: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
        """The scales, in float32 and in pairs, of the eight columns whose activations lie at chunk."""
        wide = self.product.dtypes["norm"] == jnp.float32
        if not wide:
            words = r.load(r.at(norm, r.word(0), 0, chunk), 4)
            return [(r.lower_half(pair), r.upper_half(pair)) for pair in words]
        start = r.at(norm, r.word(0), 0, arith.muli(chunk, r.word(2)))
        words = [*r.load(start, 4), *r.load(r.offset(start, 16), 4)]
        floats = [arith.bitcast(ir.F32Type.get(), word) for word in words]
        return list(zip(floats[::2], floats[1::2], strict=True))
