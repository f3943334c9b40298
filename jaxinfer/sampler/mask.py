"""Which tokens a row may take, as a grammar says: a bit each.

Applied to edited logits before temperature and filters, so that these act on what is left. Where
the edits leave a row nothing that its mask allows (min_tokens holds EOS back and the grammar is at
its end, a bad word is all that it permits), the mask wins: the row's logits are then the model's.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.sampler.penalties import Stage
from jaxinfer.sampler.settings import set_rows


class Mask(struct.PyTreeNode):
    """bits: [B, ceil(V / 32)] uint32, token t is bit t % 32 of word t // 32. masked: [B] bool, rows
    whose bits count; the others may take anything.
    """

    bits: jax.Array
    masked: jax.Array


def mask_words(vocab_size: int) -> int:
    """Words of a row of bits."""
    return -(-vocab_size // 32)


def no_mask(batch: int, vocab_size: int) -> Mask:
    """Rows that may take anything."""
    bits = jnp.full((batch, mask_words(vocab_size)), 0xFFFFFFFF, jnp.uint32)
    return Mask(bits=bits, masked=jnp.zeros((batch,), jnp.bool_))


def set_masks(mask: Mask, slots: jax.Array, bits: jax.Array) -> Mask:
    """`mask` with rows `slots` [R] int32 (those of B or more are dropped) masked by bits [R, W]."""
    return set_rows(mask, slots, Mask(bits=bits, masked=jnp.ones(slots.shape, jnp.bool_)))


def clear_masks(mask: Mask, slots: jax.Array) -> Mask:
    """`mask` with rows `slots` [R] free to take anything."""
    return mask.replace(masked=set_rows(mask.masked, slots, jnp.zeros(slots.shape, jnp.bool_)))


def masking(mask: Mask, logits: jax.Array) -> list[Stage]:
    """The stage that applies a mask; `logits` [B, V] float32 are the model's own."""
    V = logits.shape[1]

    def run(edited: jax.Array) -> jax.Array:
        allowed = _unpacked(mask.bits, V) | ~mask.masked[:, None]
        stuck = ~jnp.any(allowed & ~jnp.isneginf(edited), axis=1) & mask.masked
        return jnp.where(allowed, jnp.where(stuck[:, None], logits, edited), -jnp.inf)

    return [Stage(mask.masked, run)]


def _unpacked(bits: jax.Array, vocab_size: int) -> jax.Array:
    """[B, V] bool of [B, W] words."""
    B, W = bits.shape
    each = bits[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]
    return ((each & jnp.uint32(1)) != 0).reshape(B, W * 32)[:, :vocab_size]
