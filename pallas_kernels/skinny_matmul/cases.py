"""Named real shapes: the products of one decode step, shared by tests, benchmarks and tuning.

One layer of a model is its "qkv", "out", "gate_up" and "down"; "unembed" ends a step. A sharded
model names one chip's share.
"""

from dataclasses import dataclass

ROWS = (1, 8, 16, 64)


@dataclass(frozen=True)
class Case:
    """One weight [rows, columns]; gated: the first half of the rows gates the second."""

    name: str
    rows: int
    columns: int
    gated: bool = False


def of_model(
    name: str, d_model: int, heads: int, kv_heads: int, head: int, d_ff: int, vocab: int, chips=1
) -> tuple[Case, ...]:
    """The products of a Llama-like model; head, d_model, d_ff in elements."""
    return (
        Case(f"{name}/qkv", (heads + 2 * kv_heads) * head // chips, d_model),
        Case(f"{name}/out", d_model, heads * head // chips),
        Case(f"{name}/gate_up", 2 * d_ff // chips, d_model, gated=True),
        Case(f"{name}/down", d_model, d_ff // chips),
        Case(f"{name}/unembed", vocab // chips, d_model),
    )


CASES = {
    case.name: case
    for case in (
        *of_model("llama3-8b", 4096, 32, 8, 128, 14336, 128256),
        *of_model("llama3.2-1b", 2048, 32, 8, 64, 8192, 128256),
        *of_model("llama3-70b-tp8", 8192, 64, 8, 128, 28672, 128256, chips=8),
    )
}
