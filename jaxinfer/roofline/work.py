"""FLOPs and bytes of one step, part by part, exact from the model's own layout.

A step feeds `new_tokens` tokens of each of `batch` rows, after which a row has `context` positions:
decode is new_tokens = 1, prefill new_tokens = context, verification of a draft in between. Counts are
those of one chip of `shards`. Norms, rotations, activations and softmax are left out: together well
under 1% of the FLOPs. A multiply and an add are two FLOPs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.models.linear import Leaf
from jaxinfer.roofline import formats, kv
from jaxinfer.roofline.formats import Format
from jaxinfer.sharding import RULES


@dataclass(frozen=True)
class Work:
    """FLOPs, and bytes that cross the chip's memory.

    activation_bytes: what flows between matrix products, each written once and read once. A fused
    program keeps it on the chip, so a floor leaves it out (`least_bytes`).
    """

    flops: float = 0.0
    weight_bytes: float = 0.0
    cache_bytes: float = 0.0
    activation_bytes: float = 0.0

    @property
    def least_bytes(self) -> float:
        """Weights and cache: what no fusion avoids."""
        return self.weight_bytes + self.cache_bytes

    @property
    def bytes(self) -> float:
        """Everything, activations included."""
        return self.least_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """FLOPs per byte of everything; 0 without bytes."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.cache_bytes + other.cache_bytes,
            self.activation_bytes + other.activation_bytes,
        )


def parts(
    config: ModelConfig,
    *,
    batch: int,
    context: int,
    new_tokens: int = 1,
    logits: int = 1,
    weights: str | Format = "bfloat16",
    cache: str | Format = "bfloat16",
    shards: int = 1,
    layers: Sequence[kv.LayerKV] | None = None,
) -> dict[str, Work]:
    """The work of one step on one chip: "embedding", "attention projections", "attention", "mlp" and
    "unembedding".

    logits: after how many tokens of each row they are formed (prefill and decode 1, verification all).
    layers: another cache than the model's (see `kv`). ValueError where shards do not divide the model.
    """
    if batch < 1 or not 1 <= new_tokens <= context:
        raise ValueError(
            f"a step needs batch >= 1 and 1 <= new_tokens <= context, got {batch=}, {new_tokens=}, "
            f"{context=}"
        )
    stored, kept = formats.find(weights), formats.find(cache)
    layout = decoder.layout(config, shards)
    tokens = batch * new_tokens
    caches = kv.of(config) if layers is None else tuple(layers)
    if len(caches) != len(config.layers):
        raise ValueError(
            f"needs a cache a layer, got {len(caches)} for {len(config.layers)} layers"
        )
    total = {"attention projections": Work(), "attention": Work(), "mlp": Work()}
    for layer, own in zip(layout.layers, caches, strict=True):
        for name, tree in (("attention projections", layer.attention), ("mlp", layer.mlp)):
            total[name] += _products(tree, tokens, stored, shards)
        total["attention"] += attention(
            config, own, batch, context, new_tokens, kept, stored.plain, shards
        )
    head = layout.embed if layout.unembed is None else layout.unembed
    return {
        "embedding": _lookup(config, tokens, stored, shards),
        **total,
        "unembedding": _products(head, batch * logits, stored, shards),
    }


def on_chip(leaf: Leaf, shards: int) -> float:
    """The share of a parameter that one chip holds."""
    return 1 / shards if any(letter in RULES for letter in leaf.letters) else 1.0


def leaf_bytes(leaf: Leaf, stored: Format, shards: int) -> float:
    """The bytes of a parameter on one chip, in its format."""
    if leaf.quantizable:
        size = stored.stored(math.prod(leaf.shape[:-1]), leaf.shape[-1])
    else:
        size = float(math.prod(leaf.shape) * stored.plain)
    return size * on_chip(leaf, shards)


def _products(tree, tokens: int, stored: Format, shards: int) -> Work:
    """The matrix products with every weight of `tree`, each met by `tokens` rows."""
    total = Work()
    for leaf in jax.tree.leaves(tree, is_leaf=decoder.is_leaf):
        size = leaf_bytes(leaf, stored, shards)
        if not leaf.quantizable:
            total += Work(weight_bytes=size)
            continue
        rows, columns = leaf.shape
        out_split = leaf.letters[0] in RULES
        total += Work(
            flops=2.0 * tokens * rows * columns * on_chip(leaf, shards),
            weight_bytes=size,
            activation_bytes=stored.plain
            * tokens
            * (columns / (1 if out_split else shards) + rows / (shards if out_split else 1)),
        )
    return total


def _lookup(config: ModelConfig, tokens: int, stored: Format, shards: int) -> Work:
    """The rows of the input embedding that are looked up (and learned positions), not the table."""
    learned = tokens * config.d_model * stored.plain if config.learned_positions else 0
    return Work(
        weight_bytes=stored.stored(tokens, config.d_model) / shards + learned,
        activation_bytes=float(tokens * config.d_model * stored.plain),
    )


def attention(
    config: ModelConfig,
    own: kv.LayerKV,
    batch: int,
    context: int,
    new_tokens: int,
    kept: Format,
    plain: int,
    shards: int,
) -> Work:
    """Queries against the cache in one layer: each position that any of them sees is read once, each
    new one written once.
    """
    heads, size = config.num_heads / shards, own.key_dim + own.value_dim
    positions = visible(context, new_tokens, own)
    return Work(
        flops=2.0 * batch * heads * size * pairs(context, new_tokens, own.reach),
        cache_bytes=batch * positions * position_bytes(own, kept, shards),
        activation_bytes=float(batch * new_tokens * heads * size * plain),
    )


def position_bytes(own: kv.LayerKV, kept: Format, shards: int = 1) -> float:
    """The bytes of one position in one layer's cache, on one chip."""
    vectors = (own.key_dim,) if own.joint else (own.key_dim, own.value_dim)
    return own.per_shard(shards) * sum(kept.stored(1, size) for size in vectors)


def visible(context: int, new_tokens: int, own: kv.LayerKV) -> int:
    """Positions of one row that cross memory: older ones in reach of the first query, and new ones."""
    before = context - new_tokens
    if own.reach is None:
        return before + new_tokens
    return min(before, own.reach - 1) + min(new_tokens, own.reach)


def pairs(context: int, new_tokens: int, reach: int | None) -> int:
    """How many (query, key) pairs one row has under the causal mask: the sum over new positions of
    what each sees.
    """
    first, last = context - new_tokens + 1, context  # how many positions each query could see
    top = last if reach is None else min(last, max(reach, first - 1))
    growing = (first + top) * (top - first + 1) // 2
    return growing + (last - top) * (last if reach is None else reach)
