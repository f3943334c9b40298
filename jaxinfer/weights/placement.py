"""From a `Leaf` and rows of tensors to one parameter in its final place, perhaps quantized."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxinfer import quantize, sharding
from jaxinfer.models.linear import Leaf, Piece

ROWS_BYTES = 1 << 20  # of float32, beside some copies while they are rounded (in a core's cache)
Fill = Callable[[str, int, int, np.ndarray], None]


class RoundingError(ValueError):
    """Weights that the quantization method cannot hold."""


def place(
    leaf: Leaf, fill: Fill, dtype: np.dtype, mesh, recipe: quantize.Recipe | None
) -> quantize.Weight:
    """The parameter `leaf` describes, by its letters over `mesh` (None: on the default device).

    fill(name, start, stop, out) writes rows start .. stop of a canonical tensor into `out`, in
    out's dtype. Each row of the leaf that this process holds is asked for once (twice where the
    method looks at all rows first); a quantized row is rounded whole, before columns are cut.
    RoundingError: weights, or shards of them, that the recipe cannot hold.
    """
    where = sharding.place(leaf.letters, mesh)
    if recipe is None or not leaf.quantizable:
        return array_of(leaf.shape, where, cache(partial(_rows, leaf, fill, dtype)))
    try:
        form = form_of(leaf, recipe, mesh)
        rounder = quantize.Rounder(recipe, form)
        if rounder.surveys:
            _survey(leaf, fill, rounder)
    except ValueError as error:
        raise RoundingError(str(error)) from error
    rounded = cache(partial(_rounded, leaf, fill, rounder))

    def array(name, part):
        where = sharding.place(part.letters, mesh)
        if name == "columns":
            return jax.device_put(jnp.asarray(rounder.columns), where)
        return array_of(part.shape, where, lambda start, stop: rounded(start, stop)[name])

    return build(form, leaf, array)


def form_of(leaf: Leaf, recipe: quantize.Recipe, mesh) -> quantize.Form:
    """How `recipe` holds a leaf over `mesh`; ValueError where groups would be cut."""
    return recipe.form(leaf.shape[1], shards=cuts(leaf, mesh), head=leaf.head)


def cuts(leaf: Leaf, mesh: Mesh | None) -> int:
    """Into how many parts the columns of a leaf are cut."""
    axis = sharding.RULES.get(leaf.letters[1])
    return 1 if mesh is None or axis is None else mesh.shape[axis]


def build(
    form: quantize.Form, leaf: Leaf, array: Callable[[str, quantize.Part], jax.Array]
) -> quantize.QTensor:
    """The weight whose arrays are array(name, description)."""
    described = form.parts((leaf.shape[0], leaf.shape[1]), leaf.letters)
    found = {name: getattr(described, name) for name in quantize.ARRAYS}
    made = {name: array(name, part) for name, part in found.items() if part is not None}
    return described.replace(**made)


def array_of(shape, where, rows: Callable[[int, int], np.ndarray]) -> jax.Array:
    """An array of which every process asks for the rows start .. stop that it holds."""

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


def _blocks(leaf: Leaf, start: int, stop: int):
    """Rows start .. stop of a leaf as (piece, first row within the piece, rows), ROWS_BYTES at a
    time.
    """
    step = max(1, ROWS_BYTES // (4 * leaf.shape[1]))
    at = 0
    for piece in leaf.pieces:
        size = piece.stop - piece.start
        for low in range(max(start, at), min(stop, at + size), step):
            yield piece, low - at, min(low + step, stop, at + size) - low
        at += size


def _read(leaf: Leaf, fill: Fill, piece: Piece, first: int, count: int) -> np.ndarray:
    block = np.zeros((count, leaf.shape[1]), np.float32)
    if piece.name is not None:
        fill(piece.name, piece.start + first, piece.start + first + count, block)
    return block


def _survey(leaf: Leaf, fill: Fill, rounder: quantize.Rounder) -> None:
    seen = set()  # repeated heads count once
    for piece, first, count in _blocks(leaf, 0, leaf.shape[0]):
        name, start = piece.name, piece.start + first
        if name is not None and (name, start) not in seen:
            seen.add((name, start))
            rounder.survey(name, start, _read(leaf, fill, piece, first, count))


def _rounded(
    leaf: Leaf, fill: Fill, rounder: quantize.Rounder, start: int, stop: int
) -> dict[str, np.ndarray]:
    whole: dict[str, np.ndarray] = {}
    at = 0
    for piece, first, count in _blocks(leaf, start, stop):
        block = _read(leaf, fill, piece, first, count)
        try:
            found = rounder.round(piece.name, piece.start + first, block)
        except ValueError as error:
            raise RoundingError(str(error)) from error
        for name, rows in found.items():
            if name not in whole:
                whole[name] = aligned((stop - start, *rows.shape[1:]), rows.dtype)
            whole[name][at : at + count] = rows
        at += count
    return whole


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that starts at a multiple of 64 bytes, which the CPU backend takes over
    without copying.
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(shape)
