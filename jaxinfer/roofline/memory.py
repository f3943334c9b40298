"""What a chip must hold: weights, the cache, and room to work in."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.roofline import formats, kv
from jaxinfer.roofline.formats import Format
from jaxinfer.roofline.work import leaf_bytes, position_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip. workspace: logits in float32 and the widest activations, an estimate."""

    weights: float
    cache: float
    workspace: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.workspace


def weight_bytes(config: ModelConfig, weights: str | Format = "bfloat16", shards: int = 1) -> float:
    """Every parameter on one chip, a tied head once."""
    stored = formats.find(weights)
    return sum(leaf_bytes(leaf, stored, shards) for leaf in decoder.leaves(config, shards))


def cache_bytes(
    config: ModelConfig,
    context: int,
    cache: str | Format = "bfloat16",
    shards: int = 1,
    *,
    layers: Sequence[kv.LayerKV] | None = None,
    chunk: int = 1,
) -> float:
    """One sequence of `context` positions on one chip.

    A layer with a window keeps window + chunk - 1 positions, chunk being the most tokens written at
    once.
    """
    kept, total = formats.find(cache), 0.0
    for own in kv.of(config) if layers is None else layers:
        held = context if own.reach is None else min(context, own.reach + chunk - 1)
        total += held * position_bytes(own, kept, shards) / own.sharers
    return total


def memory(
    config: ModelConfig,
    batch: int,
    context: int,
    *,
    weights: str | Format = "bfloat16",
    cache: str | Format = "bfloat16",
    shards: int = 1,
    layers: Sequence[kv.LayerKV] | None = None,
    chunk: int = 1,
    tokens: int | None = None,
) -> Memory:
    """Weights, the cache of `batch` sequences and the workspace of a step.

    chunk: as in `cache_bytes`. tokens: in the largest step (None: one of each sequence).
    """
    plain, tokens = formats.find(weights).plain, batch if tokens is None else tokens
    wide = max(config.num_heads * config.head_dim, 2 * config.d_ff) / shards + config.d_model
    return Memory(
        weights=weight_bytes(config, weights, shards),
        cache=batch
        * cache_bytes(config, context, cache, shards, layers=layers, chunk=min(chunk, context)),
        workspace=4.0 * batch * config.vocab_size / shards + 2.0 * tokens * wide * plain,
    )
