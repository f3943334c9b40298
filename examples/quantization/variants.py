"""Which ways to hold a model are compared, and the bars that some of them are held to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxinfer.cache import KVDtype
from jaxinfer.quantize import Recipe

GROUPS = ((32, False), (128, True), (64, False), (32, True))  # size, whether symmetric
GROUPED = {"int4": "round to nearest", "awq": "AWQ", "gptq": "GPTQ"}


@dataclass(frozen=True)
class Variant:
    """recipe: None, weights as they are. by_text: whether the calibration text is read. kv_dtype: of
    the cache. planted: of the model with planted outliers, the same function.
    """

    name: str
    recipe: Recipe | None
    by_text: bool = False
    dtype: str = "bfloat16"
    kv_dtype: KVDtype | None = None
    planted: bool = False

    @property
    def clips(self) -> tuple[bool, ...]:
        """What `calibrate`'s `clip` is to be chosen from."""
        by = self.recipe
        return (True, False) if by and by.method == "gptq" and by.four_bits else (True,)

    @property
    def bits(self) -> int | None:
        """Of a weight; None as it is."""
        return None if self.recipe is None else 4 if self.recipe.four_bits else 8


def variants() -> Iterator[Variant]:
    """Plain weights, narrow caches, eight bits, then four, group after group; at last planted
    outliers. A group of 128 is taken where it divides a row, and the largest power of two below it
    elsewhere.
    """
    yield Variant("float32", None, dtype="float32")
    yield Variant("int8 KV cache", None, kv_dtype="int8")
    yield Variant("fp8 KV cache", None, kv_dtype="fp8")
    yield Variant("int8", Recipe("int8"))
    yield Variant("int8 GPTQ", Recipe("gptq", bits=8), True)
    yield Variant("fp8, scale a row", Recipe("fp8"))
    yield Variant("fp8, scale a tensor", Recipe("fp8", shared="tensor"))
    yield Variant("fp8, scale a block", Recipe("fp8", shared="block"))
    eight = (
        Variant("w8a8", Recipe("w8a8")),
        Variant("w8a8 SmoothQuant", Recipe("smoothquant"), True),
        Variant("LLM.int8(), columns by norm", Recipe("llm_int8")),
        Variant("LLM.int8(), columns by text", Recipe("llm_int8"), True),
    )
    yield from eight
    for group, symmetric in GROUPS:
        for method, words in GROUPED.items():
            name = f"int4 {words}, g{group}" + ("" if symmetric else " + zero")
            recipe = Recipe(method, group=None if group == 128 else group, symmetric=symmetric)
            yield Variant(name, recipe, method != "int4")
    for own in eight:
        name = f"{own.name}, planted outliers"
        yield Variant(name, own.recipe, own.by_text, planted=True)


@dataclass(frozen=True)
class Bar:
    """What the best of the rows that agree with `fields` must reach: a rise of perplexity over
    bfloat16's of at most `most`, or below that of the row called `than`.
    """

    what: str
    fields: tuple[dict, ...]
    most: float = 0.0
    than: str | None = None


PLANTED = "w8a8, planted outliers"
BARS = (
    Bar("int8 per channel within 0.1%", ({"method": "int8", "planted": False},), 0.001),
    Bar(
        "int4 by AWQ or GPTQ within 2%",
        ({"method": "awq", "bits": 4}, {"method": "gptq", "bits": 4}),
        0.02,
    ),
    Bar("int8 KV cache within 0.1%", ({"method": None, "kv_dtype": "int8"},), 0.001),
    Bar(
        "SmoothQuant below w8a8 where outliers are planted",
        ({"method": "smoothquant", "planted": True},),
        than=PLANTED,
    ),
    Bar(
        "LLM.int8() below w8a8 where outliers are planted",
        ({"method": "llm_int8", "planted": True},),
        than=PLANTED,
    ),
)


def judge(rows: Sequence[dict]) -> list[dict]:
    """For each of BARS that there are rows for the one that comes nearest, and whether it is met."""
    rises = {row["name"]: row["perplexity_rise"] for row in rows}
    found = []
    for bar in BARS:
        own = [row for row in rows if any(f.items() <= row.items() for f in bar.fields)]
        most = bar.most if bar.than is None else rises.get(bar.than)
        if not own or most is None:
            continue
        best = min(own, key=lambda row: row["perplexity_rise"])
        rise = best["perplexity_rise"]
        met = rise <= most if bar.than is None else rise < most
        about = {"bar": bar.what, "best": best["name"], "perplexity_rise": rise, "most": most}
        found.append({**about, "error": best["perplexity_rise_error"], "met": met})
    return found
