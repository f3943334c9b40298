"""The bytes that each instruction of a compiled program moves, from the program's text.

XLA prints its optimized HLO one instruction a line. An instruction reads its operands and writes its
result, except where it only touches a part of them: slices and gathers read what they return, updates
and scatters in place write the update alone. What runs inside a fusion moves nothing by itself. The
counts are of the program as written: caches and recomputation are not in them.
"""

import math
import re
from dataclasses import dataclass, field

BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16}
BITS |= {"s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64}
BITS |= {"c64": 64, "c128": 128, "f4e2m1fn": 4}
SLICES = ("slice", "dynamic-slice", "gather")  # read as much of operand 0 as they return
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # write operand N into operand 0
SAME_BYTES = ("bitcast", "reshape", "copy", "convert", "transpose")
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional")
FREE += ("call", "after-all", "partition-id", "replica-id")

ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+\w*|c64|c128)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
COMMENT = re.compile(r"/\*.*?\*/")
CALLED = re.compile(r"calls=%?([\w.\-]+)")
SCOPE = re.compile(r'op_name="([^"]*)"')
TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclass(frozen=True)
class Instruction:
    """sizes: bytes of each array of its result. scope: where in the source program it comes from.
    calls: a fusion's computation. target: of a custom call.
    """

    name: str
    opcode: str
    sizes: tuple[int, ...]
    operands: tuple[str, ...]
    scope: str = ""
    calls: str = ""
    target: str = ""


@dataclass
class Computation:
    """Instructions by name, in order; root: the last one's name."""

    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""


def array_bytes(text: str) -> tuple[int, ...]:
    """The bytes of every array in a type such as `(f32[3,4]{1,0}, s8[16]{0})`."""
    return tuple(
        math.ceil(math.prod(int(n) for n in dims.split(",") if n) * _bits(kind) / 8)
        for kind, dims in ARRAY.findall(text)
    )


def _bits(kind: str) -> int:
    if kind in BITS:
        return BITS[kind]
    eight = kind.startswith("f8")
    if not eight:
        raise ValueError(f"an array needs an element type among {', '.join(BITS)}, got {kind!r}")
    return 8


class Program:
    """A compiled program's text, read once."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.instructions: dict[str, Instruction] = {}
        current = Computation()
        for line in text.splitlines():
            line = COMMENT.sub("", line)
            if header := COMPUTATION.match(line):
                current = self.computations[header[1]] = Computation()
            elif found := INSTRUCTION.match(line):
                instruction = _instruction(found)
                current.instructions[instruction.name] = instruction
                self.instructions[instruction.name] = instruction
                if found[1]:
                    current.root = instruction.name
        self._by_kernel = {kernel_name(name): name for name in self.instructions}

    def find(self, name: str) -> Instruction | None:
        """The instruction that a trace calls `name`: as it stands here, or as a GPU kernel is called
        after it.
        """
        return self.instructions.get(name) or self.instructions.get(
            self._by_kernel.get(kernel_name(name), "")
        )

    def scope_of(self, name: str) -> str:
        """Where in the source program an instruction comes from; a fusion with a matrix product, where
        that does.
        """
        instruction = self.instructions[name]
        inside = self.computations.get(instruction.calls, Computation()).instructions.values()
        scopes = [one.scope for one in inside if one.scope]
        products = [scope for scope in scopes if scope.endswith("dot_general")]
        if products:
            return products[-1]
        return instruction.scope or (scopes[-1] if scopes else "")

    def library_calls(self) -> dict[tuple[str, int | None], int]:
        """How many calls of a matrix library there are, by (place in the source, bytes)."""
        found: dict[tuple[str, int | None], int] = {}
        for name, one in self.instructions.items():
            if "cublas" in one.target:
                key = (one.scope, self.bytes_of(name))
                found[key] = found.get(key, 0) + 1
        return found

    def bytes_of(self, name: str) -> int | None:
        """Bytes read and written by one execution of an instruction; None where its parts do the
        work.
        """
        instruction = self.instructions[name]
        if instruction.opcode in FREE:
            return None
        if instruction.opcode == "fusion":
            return self._fusion(instruction)
        operands = [self._size(operand) for operand in instruction.operands]
        if instruction.opcode in SLICES:
            return 2 * sum(instruction.sizes) + sum(operands[1:])
        if instruction.opcode in UPDATES:
            return 2 * operands[UPDATES[instruction.opcode]]
        sizes = instruction.sizes
        if "cublas" in instruction.target:
            sizes = sizes[:1]  # the rest is workspace
        return sum(operands) + sum(sizes)

    def _size(self, name: str) -> int:
        found = self.instructions.get(name)
        return sum(found.sizes) if found else 0

    def _fusion(self, fusion: Instruction) -> int:
        inside = self.computations[fusion.calls].instructions
        root = inside[self.computations[fusion.calls].root]
        outputs = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        total = sum(_written(inside, output) for output in outputs)
        parameters = [one for one in inside.values() if one.opcode == "parameter"]
        return total + sum(_read(inside, one) for one in parameters)


def _instruction(found: re.Match) -> Instruction:
    _, name, kind, opcode, rest = found.groups()
    operands, tail = _split(rest)
    scope, calls, target = SCOPE.search(tail), CALLED.search(tail), TARGET.search(tail)
    return Instruction(
        name=name,
        opcode=opcode,
        sizes=array_bytes(kind),
        operands=tuple(re.findall(r"%([\w.\-]+)", operands)),
        scope=scope[1] if scope else "",
        calls=calls[1] if calls else "",
        target=target[1] if target else "",
    )


def _split(rest: str) -> tuple[str, str]:
    """What follows an opening parenthesis -> what it encloses, and what comes after."""
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:at], rest[at + 1 :]
    return rest, ""


def _behind(inside: dict[str, Instruction], one: Instruction) -> Instruction:
    """What an instruction takes its elements from, past changes of form."""
    while one.opcode in SAME_BYTES and one.operands[0] in inside:
        one = inside[one.operands[0]]
    return one


def _written(inside, output) -> int:
    source = _behind(inside, output)
    if source.opcode in UPDATES:
        held = _behind(inside, inside[source.operands[0]])
        if held.opcode == "parameter":
            return sum(inside[source.operands[UPDATES[source.opcode]]].sizes)
    return sum(output.sizes)


def _read(inside, parameter) -> int:
    """How much of a parameter its users look at."""
    names, users = {parameter.name}, []
    for one in inside.values():
        mine = names.intersection(one.operands)
        if mine and one.opcode in SAME_BYTES:
            names.add(one.name)
        elif mine:
            users.append(one)
    touched = 0
    for one in users:
        first = one.operands[0] in names and not names.intersection(one.operands[1:])
        if first and one.opcode in SLICES:
            touched += sum(one.sizes)
        elif not (first and one.opcode in UPDATES):
            return sum(parameter.sizes)
    if not users:  # only its form changes, or nobody looks at it
        return sum(parameter.sizes) if len(names) > 1 else 0
    return min(touched, sum(parameter.sizes))


def kernel_name(name: str) -> str:
    """An instruction's name as a GPU kernel carries it: dots and dashes become underscores."""
    return re.sub(r"[.\-]", "_", name)
