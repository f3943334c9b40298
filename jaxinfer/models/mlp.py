"""The dense feed-forward half of a layer: gated (SwiGLU, GeGLU; Shazeer 2020) or plain."""

import jax
from flax import struct

from jaxinfer.config import ModelConfig
from jaxinfer.models.linear import Linear, fused, linear, split, whole
from jaxinfer.models.norm import Norm
from jaxinfer.sharding import constrain
from pallas_kernels.skinny_matmul import ACTIVATIONS


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


def mlp(
    x: jax.Array,
    p: MLP,
    config: ModelConfig,
    shards: int,
    tokens: str,
    *,
    before: Norm | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """x [T, D] -> [T, D], normalized by `before` first and added to `residual` last. tokens: the
    letter of axis T.
    """
    gate = config.activation if config.gated else None
    y = linear(x, p.up, config, before=before, gate=gate, shards=shards, tokens=tokens)
    if gate is None:
        y = ACTIVATIONS[config.activation](y)
    y = constrain(y, tokens + "F")
    return constrain(linear(y, p.down, config, residual=residual), tokens + ".")
