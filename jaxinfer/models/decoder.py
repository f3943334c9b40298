"""The decoder trunk: parameters, their layout, and the forward pass, as pure functions over frozen
pytrees.

One trunk serves every family; what differs is data in `ModelConfig`. It knows nothing of requests,
files or engines.
"""

from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer import quantize
from jaxinfer.cache import Cache, Pages
from jaxinfer.config import LayerConfig, ModelConfig
from jaxinfer.models import attention, mlp
from jaxinfer.models.linear import Leaf, Piece, whole
from jaxinfer.models.norm import Norm, norm
from jaxinfer.ragged import Ragged
from jaxinfer.sharding import constrain
from pallas_kernels.backend import platform


@struct.dataclass
class Layer:
    """One layer.

    pre norms precede a sublayer, post norms follow it; None where the family has none.
    """

    attention: attention.Attention
    mlp: mlp.MLP
    pre_attention: Norm | None = None
    post_attention: Norm | None = None
    pre_mlp: Norm | None = None
    post_mlp: Norm | None = None


class Params(struct.PyTreeNode):
    """embed [V', D], V' the vocabulary padded to the shards; positions [P, D] or None; unembed None
    where tied.

    shards: into how many parts the fused matrices are laid out (static).
    """

    embed: quantize.Weight
    layers: tuple[Layer, ...]
    norm: Norm
    positions: jax.Array | None = None
    unembed: quantize.Weight | None = None
    shards: int = struct.field(pytree_node=False, default=1)


def layout(config: ModelConfig, shards: int = 1) -> Params:
    """The parameters' description: a `Params` whose leaves are `Leaf`s."""
    V, D = config.vocab_size, config.d_model

    def vocabulary(name) -> Any:
        padded = -(-V // shards) * shards
        tail = (Piece(None, 0, padded - V),) if padded > V else ()
        head = config.tied or name == "unembed"
        return Leaf((padded, D), "V.", (Piece(name, 0, V), *tail), quantizable=True, head=head)

    return Params(
        embed=vocabulary("embed"),
        positions=whole("positions", (config.learned_positions, D), "..")
        if config.learned_positions
        else None,
        layers=tuple(
            _layer_layout(config, layer, shards, f"layers.{i}")
            for i, layer in enumerate(config.layers)
        ),
        norm=_norm_layout(config, "norm"),
        unembed=None if config.tied else vocabulary("unembed"),
        shards=shards,
    )


def _norm_layout(config, name):
    bias = whole(f"{name}.bias", (config.d_model,), ".") if config.norm == "layer" else None
    return Norm(whole(f"{name}.scale", (config.d_model,), "."), bias)


def _layer_layout(config: ModelConfig, layer: LayerConfig, shards: int, name: str) -> Layer:
    places = {"pre": ("pre",), "post": ("post",), "sandwich": ("pre", "post")}[config.norm_style]
    halves = ("attention", "mlp")
    norms = {f"{p}_{h}": _norm_layout(config, f"{name}.{p}_{h}") for p in places for h in halves}
    return Layer(
        attention=MIXERS[layer.mixer](config, shards, f"{name}.attention"),
        mlp=MLPS[layer.mlp](config, shards, f"{name}.mlp"),
        **norms,
    )


MIXERS: dict[str, Callable] = {"attention": attention.layout}
MLPS: dict[str, Callable] = {"dense": mlp.layout}


def is_leaf(x) -> bool:
    """For jax.tree: a `Leaf` or a `QTensor` is one parameter."""
    return isinstance(x, (Leaf, quantize.QTensor))


def leaves(config: ModelConfig, shards: int = 1) -> list[Leaf]:
    """Every parameter's description, in tree order."""
    return jax.tree.leaves(layout(config, shards), is_leaf=is_leaf)


def canonical_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every canonical (unfused, unpadded) tensor's name and shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for leaf in leaves(config):
        for piece in leaf.pieces:
            if piece.name is not None:
                shapes[piece.name] = (piece.stop, *leaf.shape[1:])
    return shapes


def assemble(config: ModelConfig, tensors: dict[str, np.ndarray], shards: int = 1) -> Params:
    """Parameters from canonical tensors (numpy or jax arrays, all of one dtype)."""

    def build(leaf):
        parts = [
            jnp.asarray(tensors[p.name][p.start : p.stop])
            if p.name is not None
            else jnp.zeros((p.stop - p.start, *leaf.shape[1:]), tensors["embed"].dtype)
            for p in leaf.pieces
        ]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    return jax.tree.map(build, layout(config, shards), is_leaf=is_leaf)


def canonical(config: ModelConfig, params: Params) -> dict[str, jax.Array]:
    """The inverse of `assemble`: canonical tensors of unquantized parameters."""
    found: dict[str, dict[int, jax.Array]] = {}
    described = jax.tree.leaves(layout(config, params.shards), is_leaf=is_leaf)
    for leaf, value in zip(described, jax.tree.leaves(params, is_leaf=is_leaf), strict=True):
        at = 0
        for piece in leaf.pieces:
            rows = piece.stop - piece.start
            if piece.name is not None:
                found.setdefault(piece.name, {})[piece.start] = value[at : at + rows]
            at += rows
    return {
        name: jnp.concatenate([parts[s] for s in sorted(parts)]) for name, parts in found.items()
    }


def init(config: ModelConfig, key: jax.Array, dtype=jnp.float32, shards: int = 1) -> Params:
    """Random parameters: normal with deviation fan_in^-1/2 (embeddings 0.02), norms at one, biases
    at zero.
    """
    tensors = {}
    for i, (name, shape) in enumerate(sorted(canonical_shapes(config).items())):
        if name.endswith(".scale"):
            tensors[name] = jnp.full(shape, 1.0 - config.norm_offset, dtype)
        elif name.endswith((".b", ".bias")):
            tensors[name] = jnp.zeros(shape, dtype)
        else:
            deviation = 0.02 if name in ("embed", "positions") else shape[-1] ** -0.5
            tensors[name] = deviation * jax.random.normal(jax.random.fold_in(key, i), shape, dtype)
    return assemble(config, tensors, shards)


def prepare(params: Params) -> Params:
    """The same parameters in the form that runs fastest where they are; do it once, before serving.

    On CPU a bfloat16 embedding is kept once more in float32 for looking tokens up: XLA would widen
    the whole table at every call.
    """
    if (
        platform() != "cpu"
        or isinstance(params.embed, quantize.QTensor)
        or params.embed.dtype != jnp.bfloat16
    ):
        return params
    unembed = params.embed if params.unembed is None else params.unembed
    return params.replace(embed=params.embed.astype(jnp.float32), unembed=unembed)


@overload
def forward(params: Params, config: ModelConfig, batch: Ragged) -> tuple[jax.Array, None]: ...


@overload
def forward(
    params: Params, config: ModelConfig, batch: Ragged, cache: Cache
) -> tuple[jax.Array, Cache]: ...


def forward(
    params: Params, config: ModelConfig, batch: Ragged, cache: Cache | None = None
) -> tuple[jax.Array, Cache | None]:
    """The hidden state of every token after the last norm, [T, D], and the cache with the new
    tokens written.

    Without a cache the batch must be whole sequences (`ragged.rectangle` with before = 0).
    """
    x = embed(params, config, batch)
    layers = []
    for i, (layer, p) in enumerate(zip(config.layers, params.layers, strict=True)):
        with jax.named_scope(f"layer_{i}"):
            x, pages = run_layer(x, p, config, layer, batch, cache, i, params.shards)
            layers.append(pages)
    if cache is not None:
        lengths = batch.lengths
        if batch.slots is not None:
            lengths = cache.lengths.at[batch.slots].set(lengths, mode="drop")
        cache = cache.replace(layers=tuple(layers), lengths=lengths)
    return norm(x, params.norm, config), cache


def embed(params: Params, config: ModelConfig, batch: Ragged) -> jax.Array:
    """What enters the first layer, [T, D]."""
    tokens = "." if batch.packed else "B"
    dtype = params.norm.scale.dtype
    x = quantize.rows(params.embed, batch.tokens, dtype)
    if config.embed_scale != 1.0:
        x = x * jnp.asarray(config.embed_scale, dtype)
    if params.positions is not None:
        x = x + params.positions[jnp.maximum(batch.positions, 0)]
    return constrain(x, tokens + ".")


def run_layer(
    x: jax.Array,
    p: Layer,
    config: ModelConfig,
    layer: LayerConfig,
    batch: Ragged,
    cache: Cache | None = None,
    index: int = 0,
    shards: int = 1,
) -> tuple[jax.Array, Pages | None]:
    """x [T, D] through one layer -> [T, D], and its pages with the new tokens where there is a
    cache (of which it is layer `index`).
    """
    tokens = "." if batch.packed else "B"
    pages = ring = pages_of = None
    if cache is not None:
        pages, ring, pages_of = cache.layers[index], cache.ring(index), cache.table(index)
        if batch.slots is not None:
            pages_of = batch.slots[:, None] if pages_of is None else pages_of[batch.slots]
    plain = p.post_attention is None and config.residual_scale == 1.0  # the halves' own sums do
    with jax.named_scope("attention"):
        y, pages = attention.attention(
            x,
            p.attention,
            config,
            layer,
            batch,
            pages,
            ring,
            pages_of,
            shards,
            before=p.pre_attention,
            residual=x if plain else None,
        )
    x = y if plain else _residual(x, y, p.post_attention, config)
    with jax.named_scope("mlp"):
        y = mlp.mlp(
            x,
            p.mlp,
            config,
            shards,
            tokens,
            before=p.pre_mlp,
            residual=x if plain else None,
        )
    return (y if plain else _residual(x, y, p.post_mlp, config)), pages


def _residual(x, y, p, config):
    y = y if p is None else norm(y, p, config)
    if config.residual_scale != 1.0:
        y = y * jnp.asarray(config.residual_scale, y.dtype)
    return x + y


def unembed(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """hidden [T, D] -> logits [T, V] float32."""
    weight = params.embed if params.unembed is None else params.unembed
    logits = quantize.einsum(hidden, weight, jnp.float32)  # not rounded on the way
    logits = constrain(logits, "?V")[:, : config.vocab_size]
    if config.logits_scale != 1.0:
        logits = logits * config.logits_scale
    if config.final_softcap is not None:
        logits = config.final_softcap * jnp.tanh(logits / config.final_softcap)
    return logits
