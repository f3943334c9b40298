"""From a `Leaf` and rows of tensors to one parameter in its final place, perhaps quantized."""

from collections.abc import Callable
from functools import cache, partial

import jax
import numpy as np

from jaxinfer import quantize, sharding
from jaxinfer.models.linear import Leaf

ROWS_BYTES = 32 << 20
Fill = Callable[[str, int, int, np.ndarray], None]


class RoundingError(ValueError):
    """Weights that the quantization method cannot hold."""


def place(leaf: Leaf, fill: Fill, dtype: np.dtype, mesh, method: str | None) -> quantize.Weight:
    """The parameter `leaf` describes, by its letters over `mesh` (None: on the default device).

    fill(name, start, stop, out) writes rows start .. stop of a canonical tensor into `out`, in
    out's dtype. Each row of the leaf that this process holds is asked for once; a quantized row is
    rounded whole, before columns are cut.
    """
    where = sharding.place(leaf.letters, mesh)
    if method is None or not leaf.quantizable:
        return _array(leaf.shape, where, cache(partial(_rows, leaf, fill, dtype)))
    rounded = cache(partial(_rounded, leaf, fill))
    values = _array(leaf.shape, where, lambda start, stop: rounded(start, stop)[0])
    where = sharding.place(leaf.letters[:1], mesh)
    scale = _array(leaf.shape[:1], where, lambda start, stop: rounded(start, stop)[1])
    return quantize.QTensor(values, scale, method)


def _array(shape, where, rows) -> jax.Array:
    def block(index):
        start, stop, _ = index[0].indices(shape[0])
        cut = rows(start, stop)[(slice(None), *index[1:])]
        return np.ascontiguousarray(cut)

    return jax.make_array_from_callback(shape, where, block).block_until_ready()


def _rows(leaf: Leaf, fill: Fill, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
    out = aligned((stop - start, *leaf.shape[1:]), dtype)
    at = 0
    for piece in leaf.pieces:
        size = piece.stop - piece.start
        low, high = max(start, at), min(stop, at + size)
        if low < high:
            target = out[low - start : high - start]
            if piece.name is None:
                target[...] = 0
            else:
                fill(piece.name, piece.start + low - at, piece.start + high - at, target)
        at += size
    return out


def _rounded(leaf: Leaf, fill: Fill, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    values = aligned((stop - start, *leaf.shape[1:]), np.dtype(np.int8))
    scale = aligned((stop - start,), np.dtype(np.float32))
    step = max(1, ROWS_BYTES // (4 * leaf.shape[1]))
    for low in range(start, stop, step):
        high = min(stop, low + step)
        at = slice(low - start, high - start)
        block = _rows(leaf, fill, np.dtype(np.float32), low, high)
        try:
            values[at], scale[at] = quantize.round_rows(block)
        except ValueError as error:
            raise RoundingError(str(error)) from error
    return values, scale


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that starts at a multiple of 64 bytes, which the CPU backend takes over
    without copying.
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(shape)
