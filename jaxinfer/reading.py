"""Compiled programs that read whole texts and generate nothing: what a text means, how likely each
of its tokens was and what would have been likelier.

Texts are padded to power-of-two lengths, so a handful of programs serve all of them.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxinfer.cache import KVDtype
from jaxinfer.config import ModelConfig
from jaxinfer.generate import embed, score_alternatives
from jaxinfer.models import decoder

SHORTEST = 16  # tokens; lengths double from here


@dataclass(frozen=True)
class TokenScore:
    """How likely a token of a text was: its natural log-probability, its rank (1: the likeliest)
    and the likeliest (token id, log-probability) pairs in its place.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class Reader:
    """The reading programs of one model. Calls from any thread; what is new to it compiles."""

    def __init__(
        self,
        params: decoder.Params,
        config: ModelConfig,
        mesh=None,
        *,
        pooling: str = "mean",
        kv_dtype: KVDtype | None = None,
    ):
        self._params, self._mesh = params, mesh
        self._embed = jax.jit(
            lambda params, tokens, lengths: embed(params, config, tokens, lengths, pooling=pooling)
        )
        self._score = jax.jit(
            lambda params, tokens, lengths, top_n: score_alternatives(
                params, config, tokens, lengths, top_n=top_n, kv_dtype=kv_dtype
            ),
            static_argnums=3,
        )

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [D], of length 1: see `generate.embed`."""
        return np.asarray(self._run(self._embed, ids))[0]

    def score(self, ids: Sequence[int], top_n: int) -> list[TokenScore | None]:
        """One entry a token, None for the first: see `generate.score_alternatives`."""
        found = jax.device_get(self._run(self._score, ids, top_n))
        scores: list[TokenScore | None] = [None]
        for i in range(1, len(ids)):
            pairs = zip(
                found.top_ids[0, i].tolist(), found.top_logprobs[0, i].tolist(), strict=True
            )
            scores.append(
                TokenScore(
                    int(ids[i]), float(found.logprobs[0, i]), int(found.ranks[0, i]), tuple(pairs)
                )
            )
        return scores

    def _run(self, program: Callable, ids: Sequence[int], *statics):
        padded = SHORTEST
        while padded < len(ids):
            padded *= 2
        tokens = np.zeros((1, padded), np.int32)
        tokens[0, : len(ids)] = ids
        with jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext():
            return program(self._params, tokens, np.asarray([len(ids)], np.int32), *statics)
