"""Thirty-two-bit registers of one GPU thread: wide loads, conversions to bfloat16, tensor-core products.

The values here are MLIR values inside a Mosaic GPU kernel; every function emits instructions. A
"word" is an i32 that holds four bytes of memory, or two bfloat16 neighbours, the lower one first.
"""

from collections.abc import Sequence
from typing import Any

from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

BYTES = 16  # of one load


def i32() -> ir.Type:
    return ir.IntegerType.get_signless(32)


def i64() -> ir.Type:
    return ir.IntegerType.get_signless(64)


def word(value: int) -> ir.Value:
    """A constant; its bits are those of value modulo 2**32."""
    return arith.constant(i32(), value - (1 << 32) if value >= 1 << 31 else value)


def real(value: float) -> ir.Value:
    return arith.constant(ir.F32Type.get(), value)


def asm(results: str, text: str, constraints: str, operands: Sequence, fixed: bool = False) -> list:
    """The results of one PTX statement. results: "r" or "f" per register; fixed: stays in order."""
    types = [i32() if kind == "r" else ir.F32Type.get() for kind in results]
    wanted = ",".join([*(f"={kind}" for kind in results), *constraints])
    if not types:
        llvm.inline_asm(None, operands, text, wanted, has_side_effects=True)
        return []
    if len(types) == 1:
        return [llvm.inline_asm(types[0], operands, text, wanted, has_side_effects=fixed)]
    struct = llvm.StructType.get_literal(types)
    found: Any = llvm.inline_asm(struct, operands, text, wanted, has_side_effects=fixed)
    return [llvm.extractvalue(kind, found, [i]) for i, kind in enumerate(types)]


def stream(address: ir.Value, needed: ir.Value | None = None) -> list[ir.Value]:
    """Sixteen bytes of global memory that nobody reads again: four words, past the first cache.
    Without `needed` (i32, nonzero: load), always. An ordinary load, not a read-only one: the
    assembler would put that off, past a barrier, until its value is used.
    """
    load = "ld.global.L1::no_allocate.L2::256B.v4.b32 {$0, $1, $2, $3}, [$4];"
    if needed is None:
        return asm("rrrr", load, "l", [address], fixed=True)
    guarded = "{ .reg .pred p; setp.ne.b32 p, $5, 0; @p " + load + " }"
    return asm("rrrr", guarded, "lr", [address, needed], fixed=True)


def load(address: ir.Value, words: int) -> list[ir.Value]:
    """1, 2 or 4 words of global memory (64-bit address) or shared memory (32-bit address)."""
    local = address.type == i32()
    space, kind = ("shared", "r") if local else ("global.nc", "l")
    if words == 1:
        return asm("r", f"ld.{space}.b32 $0, [$1];", kind, [address], fixed=True)
    names = ", ".join(f"${i}" for i in range(words))
    text = f"ld.{space}.v{words}.b32 {{{names}}}, [${words}];"
    return asm("r" * words, text, kind, [address], fixed=True)


def store_shared(address: ir.Value, values: Sequence[ir.Value]) -> None:
    """1 or 4 words to shared memory."""
    if len(values) == 1:
        asm("", "st.shared.b32 [$0], $1;", "rr", [address, *values])
    else:
        text = "st.shared.v4.b32 [$0], {$1, $2, $3, $4};"
        asm("", text, "rrrrr", [address, *values])


def block_barrier() -> None:
    """Every thread of the block arrives before any goes on."""
    asm("", "bar.sync 0;", "", [])


def prefetch(address: ir.Value, count: ir.Value) -> None:
    """Start to bring `count` bytes (i32, a multiple of 16) of global memory into the second cache."""
    asm("", "cp.async.bulk.prefetch.L2.global [$0], $1;", "lr", [address, count])


def permute(a: ir.Value, b: ir.Value | int, selector: int) -> ir.Value:
    """Four bytes chosen among those of a (0..3) and b (4..7), by the selector's nibbles."""
    b = word(b) if isinstance(b, int) else b
    return asm("r", f"prmt.b32 $0, $1, $2, {selector:#x};", "rr", [a, b])[0]


def pairwise(operation: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """`operation` ("sub", "mul", ...) on two pairs of bfloat16."""
    return asm("r", f"{operation}.rn.bf16x2 $0, $1, $2;", "rr", [a, b])[0]


def and_or(a: ir.Value, mask: int, bits: int) -> ir.Value:
    return arith.ori(arith.andi(a, word(mask)), word(bits))


def from_int8(packed: ir.Value) -> list[ir.Value]:
    """Four int8 -> two words of bfloat16, exactly.

    The byte becomes the mantissa of a number in 128..255 or, with its sign bit in the exponent's
    last place, of one twice that; taking 128 or 256 away leaves the integer.
    """
    pairs = []
    for selector in (0x4140, 0x4342):
        spread = permute(packed, 0x43434343, selector)
        offset = arith.andi(spread, word(0xFF80FF80))
        pairs.append(pairwise("sub", arith.andi(spread, word(0xFF7FFF7F)), offset))
    return pairs


def from_int4(packed: ir.Value, offset: ir.Value) -> list[ir.Value]:
    """Eight nibbles in the order of `weight.ORDER` -> four words of bfloat16: nibble + 128 - offset
    (a pair of bfloat16), exactly.
    """
    pairs = []
    for place in range(4):
        shifted = arith.shrui(packed, word(4 * place)) if place else packed
        pairs.append(pairwise("sub", and_or(shifted, 0x000F000F, 0x43004300), offset))
    return pairs


def from_fp8(packed: ir.Value) -> list[ir.Value]:
    """Four float8_e4m3fn -> two words of bfloat16, exactly (a NaN becomes 480)."""
    pairs = []
    for selector in (0x1404, 0x3424):
        spread = permute(packed, 0, selector)
        sign = arith.andi(spread, word(0x80008000))
        rest = arith.andi(arith.shrui(spread, word(4)), word(0x07F007F0))
        pairs.append(pairwise("mul", arith.ori(sign, rest), word(0x7B807B80)))  # times 2**120
    return pairs


def multiply(sums: Sequence, a: Sequence, b: Sequence) -> list[ir.Value]:
    """sums [16, 8] + a [16, 16] b [16, 8] over a warp: 4 float, 4 words and 2 words a thread."""
    text = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    return asm("ffff", text, "rrrrrrffff", [*a, *b, *sums])


def lower_half(pair: ir.Value) -> ir.Value:
    """The first of two bfloat16, as float32."""
    return arith.bitcast(ir.F32Type.get(), arith.shli(pair, word(16)))


def upper_half(pair: ir.Value) -> ir.Value:
    return arith.bitcast(ir.F32Type.get(), arith.andi(pair, word(0xFFFF0000)))


def rounded_pair(low: ir.Value, high: ir.Value) -> ir.Value:
    """Two float32 -> one word of bfloat16, to nearest even."""
    return asm("r", "cvt.rn.bf16x2.f32 $0, $1, $2;", "ff", [high, low])[0]


def approximately(function: str, x: ir.Value) -> ir.Value:
    """ "ex2", "rcp" or "rsqrt" of a float32, to 2 units in the last place."""
    return asm("f", f"{function}.approx.ftz.f32 $0, $1;", "f", [x])[0]


def scaled(pair: ir.Value, factors: tuple[ir.Value, ir.Value], common: ir.Value) -> ir.Value:
    """A pair of bfloat16 times a pair of float32 and one more, rounded once."""
    low = arith.mulf(arith.mulf(lower_half(pair), common), factors[0])
    high = arith.mulf(arith.mulf(upper_half(pair), common), factors[1])
    return rounded_pair(low, high)


def gated(gate: str, x: ir.Value) -> ir.Value:
    """silu, gelu_tanh or relu of a float32."""
    if gate == "relu":
        return arith.maximumf(x, real(0.0))
    inner = x
    if gate == "gelu_tanh":  # x * (1 + tanh(u)) / 2 is x * sigmoid(2 u)
        cube = arith.mulf(arith.mulf(x, x), x)
        inner = arith.addf(x, arith.mulf(real(0.044715), cube))
        inner = arith.mulf(real(1.5957691216057308), inner)
    decay = approximately("ex2", arith.mulf(inner, real(-1.4426950408889634)))
    return arith.mulf(x, approximately("rcp", arith.addf(decay, real(1.0))))


def plus(value: ir.Value, constant: int) -> ir.Value:
    """A 32-bit value and a constant."""
    return arith.addi(value, word(constant)) if constant else value


def offset(address: ir.Value, count: int) -> ir.Value:
    """A global address `count` bytes on."""
    return arith.addi(address, arith.constant(i64(), count)) if count else address


def at(base: ir.Value, row: ir.Value, width: int, inside: ir.Value) -> ir.Value:
    """The global address of byte `inside` of a row, rows `width` bytes apart."""
    start = arith.muli(arith.extui(i64(), row), arith.constant(i64(), width))
    return arith.addi(arith.addi(base, start), arith.extui(i64(), inside))


def load_run(start: ir.Value, words: int, spacing: int) -> list[ir.Value]:
    """`words` neighbouring words of global memory, as wide as runs that begin at multiples of
    `words`, in rows of `spacing` words, allow.
    """
    width = next(w for w in (4, 2, 1) if words % w == 0 and spacing % w == 0)
    found = []
    for first in range(0, words, width):
        found += load(offset(start, 4 * first), width)
    return found


def from_lane(value: ir.Value, distance: int) -> ir.Value:
    """The float32 of the lane whose number differs by `distance`, a power of two."""
    text = f"shfl.sync.bfly.b32 $0, $1, {distance}, 0x1f, 0xffffffff;"
    return asm("f", text, "f", [value], fixed=True)[0]
