"""The dense feed-forward half of a layer: gated (SwiGLU, GeGLU; Shazeer 2020) or plain."""

import jax
from flax import struct

from jaxinfer.config import ModelConfig
from jaxinfer.models.linear import Linear, fused, linear, split, whole
from jaxinfer.sharding import constrain

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@struct.dataclass
class MLP:
    """up: gate and up rows fused shard after shard (only up where not gated); down [D, F]."""

    up: Linear
    down: Linear


def layout(config: ModelConfig, shards: int, name: str) -> MLP:
    """The description (`Leaf`s) of one MLP, canonical tensors named under `name`."""
    D, F = config.d_model, config.d_ff
    if F % shards:
        raise ValueError(
            f"tensor parallelism over {shards} shards needs d_ff to be a multiple, got {F}"
        )
    parts = ("gate", "up") if config.gated else ("up",)

    def up(leaf, columns, letters):
        return fused(
            [(f"{name}.{part}.{leaf}", split(F, shards)) for part in parts], columns, letters
        )

    return MLP(
        up=Linear(up("w", D, "F."), up("b", None, "F") if config.mlp_bias else None),
        down=Linear(
            whole(f"{name}.down.w", (D, F), ".F", quantizable=True),
            whole(f"{name}.down.b", (D,), ".") if config.mlp_bias else None,
        ),
    )


def mlp(x: jax.Array, p: MLP, config: ModelConfig, shards: int, tokens: str) -> jax.Array:
    """x [T, D] -> [T, D]. tokens: the letter of axis T."""
    T, F = x.shape[0], config.d_ff
    y = linear(x, p.up)
    activation = ACTIVATIONS[config.activation]
    if config.gated:
        y = constrain(y.reshape(T, shards, 2, F // shards), tokens + "F..")
        y = activation(y[:, :, 0]) * y[:, :, 1]
    else:
        y = activation(y)
    y = constrain(y.reshape(T, F), tokens + "F")
    return constrain(linear(y, p.down), tokens + ".")
