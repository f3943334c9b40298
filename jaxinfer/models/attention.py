"""Grouped-query attention over the ring cache, or over whole sequences when there is no cache."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer import cache as kv
from jaxinfer.config import LayerConfig, ModelConfig
from jaxinfer.models import cached_attention
from jaxinfer.models.linear import Linear, fused, linear, split, whole
from jaxinfer.models.norm import Norm, rms
from jaxinfer.models.rope import rotate, table
from jaxinfer.ragged import Ragged
from jaxinfer.sharding import constrain
from pallas_kernels.causal_attention import causal_attention


@struct.dataclass
class Attention:
    """qkv: shard after shard, each its own q, k and v heads. q_norm, k_norm: [H], or all heads
    together.
    """

    qkv: Linear
    out: Linear
    q_norm: Norm | None = None
    k_norm: Norm | None = None


def held_kv_heads(config: ModelConfig, shards: int) -> int:
    """How many key-value heads the parameters hold: heads are repeated until every shard has one.

    ValueError where heads cannot be divided over the shards.
    """
    N, K = config.num_heads, config.num_kv_heads
    if N % shards or (K % shards and shards % K):
        raise ValueError(
            f"tensor parallelism over {shards} shards needs {N} query heads and {K} key-value heads to divide "
            f"evenly (or shards to be a multiple of the latter); choose another size for mesh axis model"
        )
    return max(K, shards)


def layout(config: ModelConfig, shards: int, name: str) -> Attention:
    """The description (`Leaf`s) of one layer's attention, canonical tensors named under `name`."""
    D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
    held = held_kv_heads(config, shards)
    repeat = held // K
    # rows of the canonical k or v that each shard holds: whole heads, one repeated where shards
    # outnumber heads
    heads = [[h // repeat for h in range(*r)] for r in split(held, shards)]
    kv_rows = [(h[0] * H, (h[-1] + 1) * H) for h in heads]
    rows = {"q": split(N * H, shards), "k": kv_rows, "v": kv_rows}

    def qkv(leaf, columns, letters):
        return fused([(f"{name}.{part}.{leaf}", rows[part]) for part in "qkv"], columns, letters)

    def head_norm(part):
        if config.qk_norm == "none":
            return None
        scale = f"{name}.{part}_norm.scale"
        if config.qk_norm == "head":
            return Norm(whole(scale, (H,), "."))
        return Norm(fused([(scale, rows[part])], None, "N"))

    return Attention(
        qkv=Linear(qkv("w", D, "N."), qkv("b", None, "N") if config.qkv_bias else None),
        out=Linear(
            whole(f"{name}.out.w", (D, N * H), ".N", quantizable=True),
            whole(f"{name}.out.b", (D,), ".") if config.out_bias else None,
        ),
        q_norm=head_norm("q"),
        k_norm=head_norm("k"),
    )


def attention(
    x: jax.Array,
    p: Attention,
    config: ModelConfig,
    layer: LayerConfig,
    batch: Ragged,
    pages: kv.Pages | None,
    ring: kv.Ring | None,
    pages_of: jax.Array | None,
    shards: int,
    *,
    before: Norm | None = None,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, kv.Pages | None]:
    """x [T, D] -> ([T, D], the layer's pages with the new keys and values), normalized by `before`
    first and added to `residual` last.

    pages None: whole sequences, nothing kept. pages_of: the page table of the batch's rows.
    """
    T, N, H = x.shape[0], config.num_heads, config.head_dim
    B = batch.lengths.shape[0]
    tokens = "." if batch.packed else "B"
    K = held_kv_heads(config, shards)
    y = linear(x, p.qkv, config, before=before).reshape(T, shards, (N + 2 * K) // shards, H)
    y = constrain(y, tokens + "N..")
    q = y[:, :, : N // shards].reshape(T, N, H)
    k, v = (y[:, :, i : i + K // shards].reshape(T, K, H) for i in (N // shards, (N + K) // shards))
    q = _normalize(q, p.q_norm, config)
    k = _normalize(k, p.k_norm, config)
    q_far = None
    if layer.rope is not None:
        if ring is not None and ring.sinks:
            q_far = rotate(q, *_stream_table(layer, batch, ring))
        cos, sin = table(layer.rope, batch.positions, _reach(batch))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    q, k, v = constrain(q, tokens + "N."), constrain(k, tokens + "K."), constrain(v, tokens + "K.")
    rules: dict[str, Any] = dict(scale=config.scale, softcap=config.attention_softcap)
    if pages is None or ring is None:
        q, k, v = (a.reshape(B, batch.max_count, -1, H) for a in (q, k, v))
        out = causal_attention(q, k, v, batch.counts, window=layer.window, **rules)
    else:
        out, pages = cached_attention.attend(q, k, v, q_far, pages, ring, pages_of, batch, **rules)
    out = constrain(out.reshape(T, N * H), tokens + "N")
    return constrain(linear(out, p.out, config, residual=residual), tokens + "."), pages


def _stream_table(layer, batch, ring):
    """The rotation with which queries meet the sinks: at the place they have inside the buffer
    (StreamingLLM).
    """
    inside = jnp.minimum(batch.positions, ring.sinks + ring.window - 1)
    return table(layer.rope, inside, _reach(batch))


def _reach(batch):
    """The reach of each token's row, [T]; where T is a rectangle, without a gather (which shards
    would pay for).
    """
    return batch.reach[batch.rows] if batch.packed else jnp.repeat(batch.reach, batch.max_count)


def _normalize(x, p, config):
    if p is None:
        return x
    if config.qk_norm == "head":
        return rms(x, p.scale, config.norm_eps, config.norm_offset)
    T, heads, H = x.shape
    return rms(x.reshape(T, heads * H), p.scale, config.norm_eps, config.norm_offset).reshape(
        T, heads, H
    )
