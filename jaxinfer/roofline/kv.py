"""What each layer keeps of every position, as data, so that caches a model does not have can be
asked about.

`of(config)` is the model's own; `latent`, `shared`, `local` and `stream` change it: multi-head latent
attention (DeepSeek-AI 2024, section 2.1), cross-layer attention (Brandon et al. 2024), sliding windows
(Beltagy et al. 2020) and attention sinks (Xiao et al. 2023). The projections around the cache stay
the model's. For grouped-query attention change `num_kv_heads` of the config: that changes the
projections as well.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from jaxinfer.config import ModelConfig


@dataclass(frozen=True)
class LayerKV:
    """One layer's cache. heads: into how many equal parts it can be split over shards.

    key_dim, value_dim: the vector that each query head meets in each. joint: the value is a part of the
    key (latent attention), kept once. window: how many latest positions are seen (None: all); sinks:
    first positions that are seen besides. sharers: how many layers keep one cache together; each still
    reads it.
    """

    heads: int
    key_dim: int
    value_dim: int
    joint: bool = False
    window: int | None = None
    sinks: int = 0
    sharers: int = 1

    @property
    def vectors(self) -> int:
        """Elements per position and head, all that is kept."""
        return self.key_dim if self.joint else self.key_dim + self.value_dim

    @property
    def reach(self) -> int | None:
        """The most positions that a query sees (None: all)."""
        return None if self.window is None else self.window + self.sinks

    def per_shard(self, shards: int) -> float:
        """Heads that one of `shards` chips keeps; heads are repeated until every chip has one."""
        return max(self.heads / shards, 1)


def of(config: ModelConfig) -> tuple[LayerKV, ...]:
    """The caches of the model itself, one a layer."""
    K, H = config.num_kv_heads, config.head_dim
    return tuple(LayerKV(K, H, H, window=layer.window) for layer in config.layers)


def latent(config: ModelConfig, rank: int, rope_dim: int) -> tuple[LayerKV, ...]:
    """One latent vector of `rank` and one rotary key of `rope_dim` for all heads (absorbed form)."""
    return tuple(
        LayerKV(1, rank + rope_dim, rank, joint=True, window=layer.window)
        for layer in config.layers
    )


def shared(layers: Sequence[LayerKV], sharers: int) -> tuple[LayerKV, ...]:
    """Every `sharers` neighbouring layers keep one cache: less memory, the same reading."""
    return tuple(dataclasses.replace(layer, sharers=sharers) for layer in layers)


def local(layers: Sequence[LayerKV], window: int, every: int) -> tuple[LayerKV, ...]:
    """All layers but each `every`-th see `window` positions at most."""
    return tuple(
        layer if (i + 1) % every == 0 else dataclasses.replace(layer, window=window)
        for i, layer in enumerate(layers)
    )


def stream(layers: Sequence[LayerKV], window: int, sinks: int) -> tuple[LayerKV, ...]:
    """Layers that see more than `window` positions see `sinks` first ones and the latest `window`."""
    return tuple(
        dataclasses.replace(layer, window=window, sinks=sinks)
        if layer.window is None or layer.window > window
        else layer
        for layer in layers
    )
