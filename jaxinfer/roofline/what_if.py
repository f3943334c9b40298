"""The same step under other ideas: fewer key-value heads, other caches, rounded weights, a draft."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxinfer.config import ModelConfig
from jaxinfer.roofline import kv
from jaxinfer.roofline.bounds import Mesh, decode
from jaxinfer.roofline.memory import memory
from jaxinfer.roofline.plan import Machine, Settings
from jaxinfer.roofline.speculation import speculate

DRAFT, ACCEPTED = (
    4,
    0.8,
)  # tokens drafted at a time; the chance of each (Leviathan et al. 2023, table 2)
LATENT, ROTARY = 512, 64  # DeepSeek-V2's (DeepSeek-AI 2024, section 2.1.2)


@dataclass(frozen=True)
class Effect:
    """memory_bytes: of one device. latency_s: per token of a row."""

    name: str
    memory_bytes: float
    latency_s: float
    throughput_tok_s: float


def effects(
    config: ModelConfig, machine: Machine, mesh: Mesh, batch: int, settings: Settings
) -> Iterator[Effect]:
    """The model as it is, then one change at a time."""
    base: dict[str, Any] = dict(weights=settings.weights, cache=settings.cache)
    rows, context = -(-batch // mesh.data), settings.context

    def effect(name: str, config=config, layers=None, **changes) -> Effect:
        kinds: dict[str, Any] = {**base, **changes}
        step = decode(config, machine.device, batch, context, mesh=mesh, layers=layers, **kinds)
        held = memory(config, rows, context, shards=mesh.model, layers=layers, **kinds)
        return Effect(name, held.total, step.latency_s, step.throughput_tok_s)

    own, N = kv.of(config), config.num_heads
    yield effect("as it is")
    for K in (N, 8, 1):
        fits = N % K == 0 and (K % mesh.model == 0 or mesh.model % K == 0)
        if config.num_kv_heads != K and fits:
            name = {N: "multi-head", 1: "multi-query"}.get(K, "grouped-query")
            changed = dataclasses.replace(config, num_kv_heads=K)
            yield effect(f"{name} attention, {K} key-value heads", changed)
    yield effect(
        f"latent attention, {LATENT} + {ROTARY} a position",
        layers=kv.latent(config, LATENT, ROTARY),
    )
    yield effect("two layers share a cache", layers=kv.shared(own, 2))
    window = max(context // 8, 1)
    yield effect(f"a window of {window:,} in 3 of 4 layers", layers=kv.local(own, window, 4))
    for weights in ("int8", "fp8", "int4"):
        if settings.weights != weights:
            yield effect(f"{weights} weights", weights=weights)
    if settings.cache != "int8":
        yield effect("int8 cache", cache="int8")
    yield _drafted(config, machine, mesh, batch, settings)


def _drafted(config, machine, mesh, batch, settings) -> Effect:
    """A draft of a tenth of the layers, with embeddings of its own."""
    kinds: dict[str, Any] = dict(weights=settings.weights, cache=settings.cache)
    context, chip = settings.context, machine.device
    small = dataclasses.replace(config, layers=config.layers[: max(len(config.layers) // 10, 1)])
    plain, draft = (
        decode(model, chip, batch, context, mesh=mesh, **kinds) for model in (config, small)
    )
    verify = decode(config, chip, batch, context + DRAFT, mesh=mesh, new_tokens=DRAFT + 1, **kinds)
    found = speculate(plain, verify, draft, DRAFT, ACCEPTED)
    rows = -(-batch // mesh.data)
    held = sum(
        memory(model, rows, context + DRAFT, shards=mesh.model, **kinds).total
        for model in (config, small)
    )
    return Effect(
        f"a draft of {len(small.layers)} layers, {DRAFT} tokens, {ACCEPTED:.0%} accepted",
        held,
        found.token_s,
        batch / found.token_s,
    )
