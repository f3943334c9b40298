"""Texts -> the log-probability of each of their tokens, compiled once a length."""

import contextlib
from collections.abc import Sequence

import jax
import numpy as np

from jaxinfer.cache import KVDtype
from jaxinfer.config import ModelConfig
from jaxinfer.generate import score
from jaxinfer.models import decoder


class Scorer:
    """`score` compiled for one model, texts padded to power-of-two lengths."""

    def __init__(
        self,
        params: decoder.Params,
        config: ModelConfig,
        mesh=None,
        *,
        kv_dtype: KVDtype | None = None,
    ):
        self._params, self._mesh = params, mesh
        self._score = jax.jit(
            lambda params, tokens, lengths: score(
                params, config, tokens, lengths, kv_dtype=kv_dtype
            )
        )

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [len(ids)]: see `generate.score`."""
        padded = 16
        while padded < len(ids):
            padded *= 2
        tokens = np.zeros((1, padded), np.int32)
        tokens[0, : len(ids)] = ids
        with jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext():
            return np.asarray(self._score(self._params, tokens, np.asarray([len(ids)], np.int32)))[
                0, : len(ids)
            ]
