"""Weights rounded block by block of rows, as they come from a file: the methods that need no text.

Some look at every row before they round the first (a scale shared by a tensor, columns chosen by
their norm): those `survey`. Rows are known by their tensor's name and their place in it, so that
what becomes of them does not depend on how tensors are fused or cut over shards.
"""

import jax.numpy as jnp
import numpy as np

from jaxinfer.quantize import fp8, llm_int8, rtn
from jaxinfer.quantize.form import Form
from jaxinfer.quantize.recipe import Recipe


class Rounder:
    """Rounds the rows of one weight to `form`."""

    def __init__(self, recipe: Recipe, form: Form, columns: np.ndarray | None = None):
        self._recipe, self._form = recipe, form
        self._tops: dict[str, np.ndarray] = {}
        self._energy: np.ndarray | None = None
        self._columns = columns

    @property
    def surveys(self) -> bool:
        """Whether `survey` has to see every row first."""
        shared = self._form.kind == "fp8" and self._recipe.shared != "channel"
        return shared or (self._form.outliers > 0 and self._columns is None)

    def survey(self, name: str, start: int, w: np.ndarray) -> None:
        """Rows start .. of the tensor `name`, in any order, each once."""
        if self._form.outliers:
            energy = np.einsum("oi,oi->i", w, w, dtype=np.float64)
            self._energy = energy if self._energy is None else self._energy + energy
        elif self._form.group is None:
            top = np.abs(w).max(initial=0.0, keepdims=True)[0]
            self._tops[name] = np.maximum(self._tops.get(name, np.zeros(1, np.float32)), top)
        else:
            tops = fp8.block_tops(w, self._form.group)
            blocks = (start + np.arange(len(w))) // fp8.BLOCK_ROWS
            held = self._tops.get(name, np.zeros((0, tops.shape[1]), np.float32))
            more = max(0, int(blocks[-1]) + 1 - len(held))
            held = np.concatenate([held, np.zeros((more, tops.shape[1]), np.float32)])
            np.maximum.at(held, blocks, tops)
            self._tops[name] = held

    @property
    def columns(self) -> np.ndarray | None:
        """The outlier columns, int32; None where the form has none."""
        if self._form.outliers and self._columns is None and self._energy is not None:
            self._columns = llm_int8.columns_from_weights(self._energy)
        return self._columns

    def round(self, name: str | None, start: int, w: np.ndarray) -> dict[str, np.ndarray]:
        """Rows start .. of a tensor (None: padding, zeros), float32 [n, in] -> the rows of the
        form's arrays: values, scale, and zero or outliers where it has them.

        ValueError: infinities or NaN.
        """
        form = self._form
        small = np.dtype(jnp.bfloat16)
        if form.kind == "int4":
            words, scale, zero = rtn.round_groups(w, form.group or w.shape[1], not form.zero)
            found = {"values": words, "scale": scale.astype(small)}
            return found if zero is None else {**found, "zero": zero.astype(small)}
        if form.kind == "fp8":
            scale = self._fp8_scale(name, start, w)
            return {"values": fp8.round_fp8(w, scale), "scale": scale}
        if self.columns is not None:
            values, scale, outliers = llm_int8.split(w, self.columns)
            return {"values": values, "scale": scale, "outliers": outliers.astype(small)}
        values, scale = rtn.round_rows(w)
        return {"values": values, "scale": scale}

    def _fp8_scale(self, name, start, w):
        group = self._form.group
        if name is None:
            return np.ones(len(w) if group is None else (len(w), w.shape[1] // group), np.float32)
        if not self.surveys:
            return fp8.scale_of(np.abs(w).max(axis=1, initial=0.0))
        if group is None:
            return np.repeat(fp8.scale_of(self._tops[name]), len(w))
        return fp8.scale_of(self._tops[name])[(start + np.arange(len(w))) // fp8.BLOCK_ROWS]
