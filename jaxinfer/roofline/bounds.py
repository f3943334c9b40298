"""Floors of time: what a step cannot be faster than on given chips.

A chip moves bytes, computes and talks at once at best, so a floor is the longest of the three; a
real program overlaps less. Sources: Williams et al. 2009 (the roofline); "How to Scale Your Model",
chapters 1 and 7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxinfer.config import ModelConfig
from jaxinfer.roofline import formats, kv
from jaxinfer.roofline.chips import Chip
from jaxinfer.roofline.formats import Format
from jaxinfer.roofline.memory import Memory, memory
from jaxinfer.roofline.work import Work, parts

Limit = Literal["memory", "compute", "interconnect"]
MOST_ROWS = 1 << 20  # a batch beyond this is no batch


@dataclass(frozen=True)
class Mesh:
    """data: copies of the model, each with its part of the batch. model: shards of each copy."""

    data: int = 1
    model: int = 1

    def __post_init__(self):
        if self.data < 1 or self.model < 1:
            raise ValueError(f"a mesh needs data and model of at least 1, got {self}")

    @property
    def devices(self) -> int:
        return self.data * self.model

    def __str__(self):
        return f"data={self.data},model={self.model}"


ALONE = Mesh()


@dataclass(frozen=True)
class Bound:
    """The floor of one step. tokens: how many the step deals with on all chips. memory_s, compute_s,
    interconnect_s: what each would take alone. memory, parts: of one chip. collectives: all-reduces.
    """

    chip: Chip
    mesh: Mesh
    tokens: int
    memory_s: float
    compute_s: float
    interconnect_s: float
    memory: Memory
    parts: Mapping[str, Work]
    part_s: Mapping[str, float]
    collectives: int

    @property
    def latency_s(self) -> float:
        return max(self.memory_s, self.compute_s, self.interconnect_s)

    @property
    def sequential_s(self) -> float:
        """The floor where parts do not overlap each other: the sum of each part's own."""
        return sum(self.part_s.values()) + self.interconnect_s

    @property
    def throughput_tok_s(self) -> float:
        return self.tokens / self.latency_s

    @property
    def limited_by(self) -> Limit:
        times: dict[Limit, float] = {
            "memory": self.memory_s,
            "compute": self.compute_s,
            "interconnect": self.interconnect_s,
        }
        return max(times, key=lambda name: times[name])

    @property
    def memory_bytes(self) -> float:
        """What one chip must hold."""
        return self.memory.total

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.chip.room

    @property
    def work(self) -> Work:
        """All parts together, of one chip."""
        return sum(self.parts.values(), Work())


def decode(
    config: ModelConfig,
    chip: Chip,
    batch: int,
    context: int,
    *,
    weights: str | Format = "bfloat16",
    cache: str | Format = "bfloat16",
    mesh: Mesh = ALONE,
    layers: Sequence[kv.LayerKV] | None = None,
    new_tokens: int = 1,
) -> Bound:
    """One more token of each of `batch` rows of `context` positions (its own included).

    chip: one JAX device (`Chip.device`). new_tokens: that many positions of each row are verified at
    once.
    """
    return _bound(
        config, chip, batch, context, new_tokens, new_tokens, weights, cache, mesh, layers
    )


def prefill(
    config: ModelConfig,
    chip: Chip,
    batch: int,
    prompt: int,
    *,
    weights: str | Format = "bfloat16",
    cache: str | Format = "bfloat16",
    mesh: Mesh = ALONE,
    layers: Sequence[kv.LayerKV] | None = None,
) -> Bound:
    """Prompts of `prompt` tokens from nothing to the first token: `latency_s` is the floor of TTFT."""
    return _bound(config, chip, batch, prompt, prompt, 1, weights, cache, mesh, layers)


def _bound(config, chip, batch, context, new_tokens, logits, weights, cache, mesh, layers) -> Bound:
    stored, kept = formats.find(weights), formats.find(cache)
    rows = -(-batch // mesh.data)
    work = parts(
        config,
        batch=rows,
        context=context,
        new_tokens=new_tokens,
        logits=logits,
        weights=stored,
        cache=kept,
        shards=mesh.model,
        layers=layers,
    )
    peaks = {
        name: chip.peak(kept.compute if name == "attention" else stored.compute) for name in work
    }
    computes = {name: part.flops / peaks[name] for name, part in work.items()}
    reads = {name: part.least_bytes / chip.bandwidth for name, part in work.items()}
    count, seconds = _all_reduces(config, chip, rows * new_tokens, stored.plain, mesh.model)
    return Bound(
        chip=chip,
        mesh=mesh,
        tokens=batch * new_tokens,
        memory_s=sum(reads.values()),
        compute_s=sum(computes.values()),
        interconnect_s=seconds,
        memory=memory(
            config,
            rows,
            context,
            weights=stored,
            cache=kept,
            shards=mesh.model,
            layers=layers,
            chunk=new_tokens,
            tokens=rows * new_tokens,
        ),
        parts=work,
        part_s={name: max(computes[name], reads[name]) for name in work},
        collectives=count,
    )


def _all_reduces(config: ModelConfig, chip: Chip, tokens: int, size: int, shards: int):
    """(how many, seconds): two a layer and one for the embedding, each of [tokens, D].

    Each chip sends 2 (n-1)/n of the array, a reduce-scatter and an all-gather, over all its links;
    the farthest of n chips is at least one hop away, there and back.
    """
    if shards == 1:
        return 0, 0.0
    link = chip.interconnect
    if link is None:
        raise ValueError(
            f"a mesh with model={shards} needs a chip with an interconnect, and {chip.name} has none; "
            "use model=1"
        )
    count = 2 * len(config.layers) + 1
    one = 2 * (shards - 1) / shards * tokens * config.d_model * size / link.bandwidth
    return count, count * (one + 2 * link.hop_s)


def attainable(chip: Chip, intensity: float, dtype: str = "bfloat16") -> float:
    """The roofline: FLOP/s that a program of `intensity` FLOPs per byte can reach."""
    return min(chip.peak(dtype), intensity * chip.bandwidth)


def critical_batch(
    config: ModelConfig,
    chip: Chip,
    context: int,
    *,
    weights: str | Format = "bfloat16",
    cache: str | Format = "bfloat16",
    mesh: Mesh = ALONE,
    layers: Sequence[kv.LayerKV] | None = None,
) -> int | None:
    """The smallest batch per copy of the model whose decode step computes at least as long as it reads;
    None where reading the cache outruns computing at any batch.
    """
    alone = Mesh(model=mesh.model)

    def computing(batch: int) -> bool:
        step = decode(
            config, chip, batch, context, weights=weights, cache=cache, mesh=alone, layers=layers
        )
        return step.compute_s >= step.memory_s

    high = 1
    while not computing(high):
        if high >= MOST_ROWS:
            return None
        high *= 2
    low = high // 2  # both times are straight lines in the batch: they cross once
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if computing(middle) else (middle, high)
    return high
