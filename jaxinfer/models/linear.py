"""A linear map with weights stored `[out, in]`, what stands before and after it in a layer, and how
such weights are laid out over shards.

A `Leaf` describes one parameter before it exists: its shape, the letters of its axes, and which
rows of which canonical tensors make it up. The same description gives random parameters, loading,
saving and shardings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer import quantize
from jaxinfer.config import ModelConfig
from jaxinfer.models.norm import Norm, norm
from jaxinfer.sharding import constrain
from pallas_kernels.skinny_matmul import ACTIVATIONS, skinny_matmul


@struct.dataclass
class Linear:
    """w [out, in] (array or QTensor); b [out] or None.

    tap: called, while a program is traced, with the rows [T, in] that meet w: whoever put it there
    returns from that program what it makes of them.
    """

    w: quantize.Weight
    b: jax.Array | None = None
    tap: Callable[[jax.Array], None] | None = struct.field(pytree_node=False, default=None)


def linear(
    x: jax.Array,
    p: Linear,
    config: ModelConfig,
    *,
    before: Norm | None = None,
    gate: str | None = None,
    residual: jax.Array | None = None,
    shards: int = 1,
    tokens: str = "B",
) -> jax.Array:
    """x [T, in] -> [T, out]: normalized by `before`, multiplied, gated, added to `residual`.

    gate: the activation (a key of ACTIVATIONS) of the first half of the output, which multiplies the
    second: [T, out / 2]; over shards each part of the output holds its own two halves. tokens: the
    letter of axis T. Where few rows meet a kernel for them, all of it is one kernel.
    """
    one = p.tap is None and (before is None or config.norm == "rms")
    if one and quantize.skinny(x, p.w):
        scale = None if before is None else before.scale
        if scale is not None and config.norm_offset:
            scale = scale.astype(jnp.float32) + config.norm_offset
        values, scales, zero = quantize.parts(p.w)
        return skinny_matmul(
            x,
            values,
            scales,
            zero=zero,
            bias=p.b,
            residual=residual,
            norm=scale,
            norm_eps=config.norm_eps,
            gate=gate,
        )
    rows = x if before is None else norm(x, before, config)
    if p.tap is not None:
        p.tap(rows)
    y = quantize.einsum(rows, p.w)
    y = y if p.b is None else y + p.b.astype(y.dtype)[None]
    if gate is not None:
        y = constrain(y.reshape(x.shape[0], shards, 2, -1), tokens + "F..")
        y = ACTIVATIONS[gate](y[:, :, 0]) * y[:, :, 1]
        y = y.reshape(x.shape[0], -1)
    return y if residual is None else residual + y


@dataclass(frozen=True)
class Piece:
    """Rows start .. stop of the canonical tensor `name`; name None: zeros (padding)."""

    name: str | None
    start: int
    stop: int


@dataclass(frozen=True)
class Leaf:
    """One parameter: its shape, the letters of its axes, and the pieces that follow each other
    along axis 0.

    quantizable: whether a quantization method may replace it. head: whether it gives the logits.
    """

    shape: tuple[int, ...]
    letters: str
    pieces: tuple[Piece, ...]
    quantizable: bool = False
    head: bool = False

    def __post_init__(self):
        rows = sum(piece.stop - piece.start for piece in self.pieces)
        assert rows == self.shape[0], (rows, self)


def whole(name: str, shape: tuple[int, ...], letters: str, quantizable: bool = False) -> Any:
    """The `Leaf` of a parameter that is one canonical tensor (typed Any: it stands in an array's
    place).
    """
    return Leaf(shape, letters, (Piece(name, 0, shape[0]),), quantizable)


def fused(parts: list[tuple[str, list[tuple[int, int]]]], columns: int | None, letters: str) -> Any:
    """Several tensors fused per shard: shard m holds rows parts[0][1][m] of the first, then those
    of the second, ...

    Each part is (canonical name, [(start, stop) of shard 0, of shard 1, ...]); columns None: a
    vector.
    """
    shards = len(parts[0][1])
    pieces = tuple(Piece(name, *ranges[m]) for m in range(shards) for name, ranges in parts)
    rows = sum(piece.stop - piece.start for piece in pieces)
    shape = (rows,) if columns is None else (rows, columns)
    return Leaf(shape, letters, pieces, quantizable=columns is not None)


def split(size: int, shards: int) -> list[tuple[int, int]]:
    """The equal consecutive ranges of `size` rows."""
    step = size // shards
    return [(m * step, (m + 1) * step) for m in range(shards)]
