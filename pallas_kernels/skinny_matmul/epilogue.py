"""What follows the sums: scale, bias, gate, residual, the store; and the next weight's first bytes."""

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, memref, scf

from pallas_kernels.skinny_matmul import registers as r
from pallas_kernels.skinny_matmul.lane import Lane
from pallas_kernels.skinny_matmul.product import LAST


class Epilogue(Lane):
    """Outputs are dealt to the threads of a block one after another."""

    def prefetch(self) -> None:
        """The last blocks ask for the next weight's first bytes, an equal share each."""
        total = self.product.ahead_bytes // r.BYTES * r.BYTES
        if not total:
            return
        blocks = min(self.product.grid, LAST)
        share = -(-total // blocks // r.BYTES) * r.BYTES
        order = arith.subi(self.block, r.word(self.product.grid - blocks))
        first = arith.muli(order, r.word(share))
        count = arith.minsi(r.word(share), arith.subi(r.word(total), first))
        slt, eq = arith.CmpIPredicate.slt, arith.CmpIPredicate.eq
        late = arith.cmpi(slt, r.word(-1), order)
        some = arith.cmpi(slt, r.word(0), count)
        one = arith.cmpi(eq, self.index, r.word(0))
        branch = scf.IfOp(arith.andi(one, arith.andi(late, some)))
        with ir.InsertionPoint(branch.then_block):
            r.prefetch(r.at(self.base("prefetch"), r.word(0), 0, first), count)
            scf.yield_([])

    def outputs(self) -> list[tuple[ir.Value, ir.Value, ir.Value]]:
        """The sums that this thread finishes: row in the block, row of activations, whether real."""
        p = self.product
        found = []
        for first in range(0, p.T * p.rows, p.threads):
            place = r.plus(self.index, first)
            row = arith.remui(place, r.word(p.rows))
            token = arith.divui(place, r.word(p.rows))
            slt = arith.CmpIPredicate.slt
            real = arith.andi(
                arith.cmpi(slt, token, r.word(p.T)),
                arith.cmpi(slt, arith.addi(self.row0, row), r.word(p.out)),
            )
            found.append((row, arith.minsi(token, r.word(p.T - 1)), real))
        return found

    def extras(self) -> list[dict]:
        """What the epilogue of each output needs from memory, asked for before the products."""
        p = self.product
        found = []
        for row, token, _ in self.outputs():
            row = arith.minsi(arith.addi(self.row0, row), r.word(p.out - 1))
            rows = [row, arith.addi(row, r.word(p.out))] if p.gate else [row]
            here = {}
            for name in ("scale", "bias"):
                if name in self.refs and not (name == "scale" and p.kind == "int4"):
                    here[name] = [self.read(name, at) for at in rows]
            if "residual" in self.refs:
                here["residual"] = self.read("residual", token, row)
            found.append(here)
        return found

    def write(self, row: ir.Value, token: ir.Value, totals: list, extras: dict) -> None:
        """The epilogue of one output, of its sum or of its gate's and its own."""
        p, parts = self.product, []
        for side, total in enumerate(totals):
            if "scale" in extras:
                total = arith.mulf(total, extras["scale"][side])
            if "bias" in extras:
                total = arith.addf(total, extras["bias"][side])
            parts.append(total)
        y = arith.mulf(r.gated(p.gate, parts[0]), parts[1]) if p.gate else parts[0]
        if "residual" in extras:
            y = arith.addf(y, extras["residual"])
        kind = ir.MemRefType(self.refs["y"].type).element_type
        y = y if y.type == kind else arith.truncf(kind, y)
        at = [self.place_of(token), self.place_of(arith.addi(self.row0, row))]
        memref.store(y, self.refs["y"], at)
