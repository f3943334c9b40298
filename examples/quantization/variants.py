"""Which ways to hold a model are compared, and the bars that some of them are held to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxinfer.quantize import Recipe

GROUPS = ((32, False), (128, True), (64, False), (32, True))  # size, whether symmetric
GROUPED = {"int4": "round to nearest", "awq": "AWQ", "gptq": "GPTQ"}


@dataclass(frozen=True)
class Variant:
    """recipe: None, weights as they are. by_text: whether the calibration text is read."""

    name: str
    recipe: Recipe | None
    by_text: bool = False
    dtype: str = "bfloat16"


def variants() -> Iterator[Variant]:
    """Plain weights, eight bits, then four, group after group. One of 128 is taken where it divides a
    row, and the largest power of two below it elsewhere.
    """
    yield Variant("float32", None, dtype="float32")
    yield Variant("int8", Recipe("int8"))
    yield Variant("int8 GPTQ", Recipe("gptq", bits=8), True)
    yield Variant("fp8, scale a row", Recipe("fp8"))
    yield Variant("fp8, scale a tensor", Recipe("fp8", shared="tensor"))
    yield Variant("fp8, scale a block", Recipe("fp8", shared="block"))
    yield Variant("w8a8", Recipe("w8a8"))
    yield Variant("w8a8 SmoothQuant", Recipe("smoothquant"), True)
    yield Variant("LLM.int8(), columns by norm", Recipe("llm_int8"))
    yield Variant("LLM.int8(), columns by text", Recipe("llm_int8"), True)
    for group, symmetric in GROUPS:
        for method, words in GROUPED.items():
            name = f"int4 {words}, g{group}" + ("" if symmetric else " + zero")
            recipe = Recipe(method, group=None if group == 128 else group, symmetric=symmetric)
            yield Variant(name, recipe, method != "int4")


@dataclass(frozen=True)
class Bar:
    """What the best of `methods` must reach: a rise of perplexity over bfloat16's of at most `most`."""

    what: str
    methods: tuple[str, ...]
    bits: int
    most: float


BARS = (
    Bar("int8 per channel within 0.1%", ("int8",), 8, 0.001),
    Bar("int4 by AWQ or GPTQ within 2%", ("awq", "gptq"), 4, 0.02),
)


def judge(rows: Sequence[dict]) -> list[dict]:
    """For each of BARS the row that comes nearest, and whether it is met."""
    found = []
    for bar in BARS:
        own = [row for row in rows if row["method"] in bar.methods and row["bits"] == bar.bits]
        if own:
            best = min(own, key=lambda row: row["perplexity_rise"])
            found.append(
                {
                    "bar": bar.what,
                    "best": best["name"],
                    "perplexity_rise": best["perplexity_rise"],
                    "error": best["perplexity_rise_error"],
                    "met": best["perplexity_rise"] <= bar.most,
                }
            )
    return found
