"""What a weight is to this operation: its values, its type, and how four bits are packed.

Known by the type of `values` alone:

| values | scale | zero | the weight [out, in] |
|---|---|---|---|
| bfloat16, float16 or float32 [out, in] | none | none | values |
| int8 or float8_e4m3fn [out, in] | [out] | none | values * scale[:, None] |
| int32 [out, in / 8] | [out, in / GROUP] | none or [out, in / GROUP] | (nibble - zero) * scale |

Four-bit weights are nibbles 0..15, without `zero` around 8. One int32 holds eight neighbours along
`in`: bits 4i .. 4i+3 hold neighbour ORDER[i], so that one shift and one mask leave two neighbours
in the two halves of a register, the form in which tensor cores take them.
"""

import jax
import jax.numpy as jnp

GROUP = 128  # neighbours along `in` that share a four-bit weight's scale
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
KINDS = {
    "float32": "float",
    "float16": "float",
    "bfloat16": "float",
    "int8": "int8",
    "float8_e4m3fn": "fp8",
    "int32": "int4",
}


def kind_of(values: jax.Array) -> str:
    """ "float", "int8", "fp8" or "int4"."""
    if values.dtype.name not in KINDS:
        raise ValueError(
            f"weights need one of the types {', '.join(KINDS)} (int32: packed four-bit), got {values.dtype}"
        )
    return KINDS[values.dtype.name]


def shape_of(values: jax.Array) -> tuple[int, int]:
    """(out, in) of the weight that `values` hold."""
    rows, columns = values.shape
    return rows, columns * 8 if kind_of(values) == "int4" else columns


def pack(nibbles: jax.Array) -> jax.Array:
    """nibbles [out, in] of any integer type, each 0..15, in a multiple of 8 -> int32 [out, in / 8]."""
    rows, columns = nibbles.shape
    if columns % 8:
        raise ValueError(
            f"packing needs a multiple of 8 columns, got {nibbles.shape}; pad with zeros"
        )
    eights = nibbles.reshape(rows, columns // 8, 8).astype(jnp.uint32)
    word = jnp.zeros(eights.shape[:2], jnp.uint32)
    for place, neighbour in enumerate(ORDER):
        word |= (eights[:, :, neighbour] & 15) << (4 * place)
    return jax.lax.bitcast_convert_type(word, jnp.int32)


def unpack(words: jax.Array) -> jax.Array:
    """int32 [out, in / 8] -> the nibbles [out, in] as int8, 0..15."""
    rows, columns = words.shape
    words = jax.lax.bitcast_convert_type(words, jnp.uint32)
    place = jnp.asarray([ORDER.index(neighbour) for neighbour in range(8)], jnp.uint32)
    nibbles = (words[:, :, None] >> (4 * place)[None, None]) & 15
    return nibbles.reshape(rows, columns * 8).astype(jnp.int8)
