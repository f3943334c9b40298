"""Parameters laid out for one number of shards, laid out anew for another."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import sharding
from jaxinfer.models.linear import Leaf, Piece
from jaxinfer.quantize import ARRAYS, QTensor, Recipe, Rounder, divides, form_of
from jaxinfer.weights import placement
from jaxinfer.weights.safetensors_file import CheckpointError


def relaid(value, before: Leaf, after: Leaf, mesh, method: str | None):
    """One parameter, described by `before`, as `after` describes it."""
    if not isinstance(value, QTensor):
        return _rows(value, 0, before, after, after.letters, mesh)
    found = {name: getattr(value, name) for name in ARRAYS}
    described = {k: (x.shape, x.dtype) for k, x in found.items() if x is not None}
    form = form_of(value.method, described)
    shards = placement.cuts(after, mesh)
    if not divides(form, value.shape[1], shards) and form.order:
        raise CheckpointError(
            f"{after.pieces[0].name}: columns sorted by group (GPTQ's act-order) need to be whole on "
            f"each of {shards} shards; load the checkpoint that this one was made of onto the mesh"
        )
    if not divides(form, value.shape[1], shards):
        raise CheckpointError(
            f"{after.pieces[0].name}: groups of {form.group} need to be whole on each of {shards} "
            f"shards, got {value.shape[1]} columns; quantize with a group that divides "
            f"{value.shape[1]} / {shards}, or choose another mesh"
        )
    padding = Rounder(Recipe(method or form.kind), form, np.arange(form.outliers)).round(
        None, 0, np.zeros((1, value.shape[1]), np.float32)
    )

    padding.setdefault("zero", np.zeros(1))  # of values 0

    def array(name, part):
        if name in padding:
            return _rows(found[name], padding[name][0], before, after, part.letters, mesh)
        return jax.device_put(found[name], sharding.place(part.letters, mesh))

    return placement.build(form, after, array)


def _rows(value: jax.Array, padding, before: Leaf, after: Leaf, letters: str, mesh) -> jax.Array:
    """padding: what a row of zeros is (a number, or the whole row)."""
    parts = []
    for piece in after.pieces:
        if piece.name is None:
            shape = (piece.stop - piece.start, *value.shape[1:])
            parts.append(jnp.broadcast_to(jnp.asarray(padding, value.dtype), shape))
        else:
            parts += [value[low:high] for low, high in _found(before, piece)]
    return jax.device_put(jnp.concatenate(parts), sharding.place(letters, mesh))


def _found(leaf: Leaf, wanted: Piece) -> list[tuple[int, int]]:
    """Which rows of `leaf` hold the canonical rows that `wanted` names, in order."""
    ranges, at, row = {}, 0, wanted.start
    for piece in leaf.pieces:
        if piece.name == wanted.name:
            ranges[piece.start] = (piece.stop, at)
        at += piece.stop - piece.start
    found = []
    while row < wanted.stop:
        start = max(first for first in ranges if first <= row)
        stop, at = ranges[start]
        high = min(stop, wanted.stop)
        found.append((at + row - start, at + high - start))
        row = high
    return found
