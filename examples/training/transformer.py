"""The decoder that the recipe trains: RMSNorm, rotary GQA attention, SwiGLU, tied embeddings.

Pure functions over a dict of arrays whose layers are stacked on a leading `L` axis, written for
training (scan over layers, cuDNN attention, bfloat16 compute over float32 masters). It does not
know caches or sampling: export the weights (`checkpoint.py`) and load them with jaxinfer for that.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # stacked [L, inputs, outputs]
OTHERS = ("embed", "norm", "attention_norm", "mlp_norm")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model: V vocabulary, D model, F feed-forward, L layers, N query and K KV heads."""

    vocab_size: int = 8192
    hidden_size: int = 384
    intermediate_size: int = 1088
    num_layers: int = 10
    num_heads: int = 6
    num_kv_heads: int = 2
    head_size: int = 64
    context: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of every matrix of a layer."""
        D, F, H = self.hidden_size, self.intermediate_size, self.head_size
        N, K = self.num_heads, self.num_kv_heads
        return {
            "q": (D, N * H),
            "k": (D, K * H),
            "v": (D, K * H),
            "o": (N * H, D),
            "gate": (D, F),
            "up": (D, F),
            "down": (F, D),
        }

    def num_parameters(self) -> int:
        """Parameters in all, the tied embedding counted once."""
        layer = sum(a * b for a, b in self.matrices().values()) + 2 * self.hidden_size
        return self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size


TARGET = Shape()


def draft_of(target: Shape) -> Shape:
    """A draft about an eighth of the target: half as wide, two layers, the same vocabulary."""
    return dataclasses.replace(
        target,
        hidden_size=target.hidden_size // 2,
        intermediate_size=max(64, target.hidden_size * 4 // 3),
        num_layers=2,
        num_heads=max(1, target.num_heads // 2),
        num_kv_heads=max(1, target.num_kv_heads // 2),
    )


def init(key: jax.Array, shape: Shape) -> Params:
    """Fresh float32 parameters; the matrices that write to the residual stream start at zero."""
    params = {
        "embed": 0.02 * jax.random.normal(key, (shape.vocab_size, shape.hidden_size)),
        "norm": jnp.ones(shape.hidden_size),
        "attention_norm": jnp.ones((shape.num_layers, shape.hidden_size)),
        "mlp_norm": jnp.ones((shape.num_layers, shape.hidden_size)),
    }
    for index, (name, (fan_in, fan_out)) in enumerate(shape.matrices().items()):
        scale = 0.0 if name in ("o", "down") else fan_in**-0.5
        noise = jax.random.normal(
            jax.random.fold_in(key, index), (shape.num_layers, fan_in, fan_out)
        )
        params[name] = scale * noise
    return params


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm of x [B, T, D], computed in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * weight.astype(jnp.float32)[None, None]).astype(x.dtype)


def rotary(T: int, head_size: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of shape [1, T, 1, H / 2] in float32, for positions 0..T-1."""
    rates = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles = jnp.arange(T, dtype=jnp.float32)[None, :, None, None] * rates[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate pairs (i, i + H/2) of x [B, T, heads, H]."""
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention: q [B, T, N, H], k and v [B, T, K, H] -> [B, T, N, H]."""
    cudnn = jax.default_backend() == "gpu" and q.dtype == jnp.bfloat16
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, implementation="cudnn" if cudnn else "xla"
    )


def hidden(params: Params, shape: Shape, tokens: jax.Array, unroll: int = 1) -> jax.Array:
    """Final normed states [B, T, D] of tokens [B, T], in the dtype of `params`."""
    B, T = tokens.shape
    N, K, H = shape.num_heads, shape.num_kv_heads, shape.head_size
    cos, sin = rotary(T, H, shape.rope_theta)

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, None]:
        y = rms_norm(x, w["attention_norm"], shape.norm_eps)
        q = rotate((y @ w["q"]).reshape(B, T, N, H), cos, sin)
        k = rotate((y @ w["k"]).reshape(B, T, K, H), cos, sin)
        v = (y @ w["v"]).reshape(B, T, K, H)
        x = x + attention(q, k, v).reshape(B, T, N * H) @ w["o"]
        y = rms_norm(x, w["mlp_norm"], shape.norm_eps)
        return x + (jax.nn.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"], None

    names = ("attention_norm", "mlp_norm", *shape.matrices())
    x, _ = jax.lax.scan(
        layer, params["embed"][tokens], {name: params[name] for name in names}, unroll=unroll
    )
    return rms_norm(x, params["norm"], shape.norm_eps)


def logits(params: Params, shape: Shape, tokens: jax.Array, unroll: int = 1) -> jax.Array:
    """Next-token logits float32[B, T, V] of tokens [B, T]."""
    x = hidden(params, shape, tokens, unroll)
    return jnp.einsum("btd,vd->btv", x, params["embed"], preferred_element_type=jnp.float32)


def compute_copy(params: Params, dtype: jnp.dtype) -> Params:
    """The parameters in the dtype that the forward pass computes in."""
    return {name: value.astype(dtype) for name, value in params.items()}


def cross_entropy(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood in nats, float32[B, T], of targets [B, T] under logits [B, T, V]."""
    picked = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - picked
