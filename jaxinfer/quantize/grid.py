"""Grids: which numbers a weight may be, and the nearest of them.

Written against the array API, so that the same lines serve numpy, while a checkpoint is read block by
block, and jax, where a method searches.
"""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.skinny_matmul.weight import ORDER

LEVELS = 15  # of four bits, less one
LARGEST = 1e38  # of weights: a group's width, and a multiple of its scale, stay below float32's end
MIDDLE = 8  # the nibble that means zero where there is no zero point


def four_bit(grouped, symmetric: bool):
    """grouped [..., group] float32 -> scale [...] and zero [...] (None: symmetric), float32 holding
    bfloat16 values.

    Symmetric: scale = 2 max|w| / 15 around nibble 8 (GPTQ's `quant.py`); else from the least to the
    largest, zero included, with a whole zero point (AWQ's `pseudo_quantize_tensor`). A group of
    zeros gets scale 1.
    """
    xp = grouped.__array_namespace__()
    if symmetric:
        return _narrow(abs(grouped).max(axis=-1) * (2 / LEVELS)), None
    nothing = xp.zeros((), dtype=grouped.dtype)
    low, high = (
        xp.minimum(grouped.min(axis=-1), nothing),
        xp.maximum(grouped.max(axis=-1), nothing),
    )
    scale = _narrow((high - low) / LEVELS)
    return scale, xp.clip(xp.round(-low / scale), 0, LEVELS)


def nibbles(grouped, scale, zero):
    """The nearest nibbles (as float32, 0..15) of grouped [..., group]."""
    xp = grouped.__array_namespace__()
    middle = MIDDLE if zero is None else zero[..., None]
    return xp.clip(xp.round(grouped / scale[..., None]) + middle, 0, LEVELS)


def from_nibbles(numbers, scale, zero):
    """What nibbles [..., group] stand for, float32."""
    return (numbers - (MIDDLE if zero is None else zero[..., None])) * scale[..., None]


def eight_bit(rows):
    """rows [..., in] float32 -> scale [...]: max|w| / 127, 1 for zeros (and what float32 takes for
    them).
    """
    xp = rows.__array_namespace__()
    scale = abs(rows).max(axis=-1) / 127
    return xp.where(scale > 0, scale, xp.ones_like(scale))


def bytes_of(rows, scale):
    """The nearest of -127 .. 127, float32."""
    xp = rows.__array_namespace__()
    return xp.clip(xp.round(rows / scale[..., None]), -127, 127)


def nearest(w, group: int | None, symmetric: bool = True):
    """w [out, in] float32 rounded to its own grid: four bits in groups, or eight (group None)."""
    if group is None:
        scale = eight_bit(w)
        return bytes_of(w, scale) * scale[:, None]
    out, columns = w.shape
    grouped = w.reshape(out, columns // group, group)
    scale, zero = four_bit(grouped, symmetric)
    return from_nibbles(nibbles(grouped, scale, zero), scale, zero).reshape(out, columns)


def pack(numbers: np.ndarray) -> np.ndarray:
    """Nibbles [out, in] -> int32 [out, in / 8], on the host; as `weight.pack` does it."""
    rows, columns = numbers.shape
    eights = numbers.reshape(rows, columns // 8, 8).astype(np.uint32)
    words = np.zeros(eights.shape[:2], np.uint32)
    for place, neighbour in enumerate(ORDER):
        words |= eights[:, :, neighbour] << np.uint32(4 * place)
    return words.view(np.int32)


def check_finite(rows: np.ndarray, kind: str) -> None:
    """ValueError where weights are infinite, NaN, or so large that a rounded one might be: no scale
    can hold them.
    """
    if not (np.abs(rows) <= LARGEST).all():
        raise ValueError(
            f"{kind} quantization needs finite weights of at most {LARGEST:g}, got infinities, NaN or "
            "larger ones; repair the checkpoint"
        )


def _narrow(scale):
    """Rounded to bfloat16, in which four-bit scales are kept; 1 for zero."""
    xp = scale.__array_namespace__()
    scale = scale.astype(jnp.bfloat16).astype(jnp.float32)
    return xp.where(scale > 0, scale, xp.ones_like(scale))
